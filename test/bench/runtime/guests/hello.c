/* Says hello; with an argument it stays. Built for WASI and for this machine. */
#include <stdio.h>
#include <unistd.h>

int main(int argc, char **argv) {
    (void)argv;
    printf("hello\n");
    fflush(stdout);
    while (argc > 1)
        sleep(3600);
    return 0;
}
