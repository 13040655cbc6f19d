/*
 * The smallest pod: it greets once, with who and where it is, and then keeps
 * quiet until it is told to end.
 */
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

static const char *or(const char *value, const char *otherwise) {
    return value && *value ? value : otherwise;
}

int main(int argc, char **argv) {
    printf("Hello from WebAssembly, %s", or(getenv("WHO"), "world"));
    printf(" (pod %s on node %s)\n", or(getenv("POD_NAME"), or(getenv("HOSTNAME"), "?")), or(getenv("NODE_NAME"), "?"));
    fflush(stdout);
    for (;;)
        sleep(3600);
}
