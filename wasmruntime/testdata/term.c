/* Waits for its termination descriptor, and ends in good order. */
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
int main(void) {
    const char *s = getenv("CORACLE_TERM_FD");
    if (!s) return 9;
    struct pollfd p = {.fd = atoi(s), .events = POLLIN};
    printf("waiting\n");
    fflush(stdout);
    int n = poll(&p, 1, -1);
    printf("asked to end: %d\n", n);
    return 7;
}
