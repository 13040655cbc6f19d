// Prints "tick N" five times a second, for as long as it runs; with an argument,
// that many times.
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

int main(int argc, char **argv) {
    long last = argc > 1 ? atol(argv[1]) : 0;
    for (long n = 1; last == 0 || n <= last; n++) {
        printf("tick %ld\n", n);
        fflush(stdout);
        usleep(200000);
    }
    return 0;
}
