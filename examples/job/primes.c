/* Counts the primes below a number, prints how many there are, and is done. */
#include <stdio.h>
#include <stdlib.h>

int main(int argc, char **argv) {
    const char *text = argc > 1 ? argv[1] : getenv("BELOW");
    long below = text ? atol(text) : 1000000;
    if (below < 2 || below > 100000000) {
        fprintf(stderr, "primes: give a number between 2 and 100000000, not %s\n", text);
        return 2;
    }
    char *composite = calloc((size_t)below, 1);
    if (!composite) {
        fprintf(stderr, "primes: no memory for %ld numbers\n", below);
        return 1;
    }
    long count = 0;
    for (long i = 2; i < below; i++) {
        if (composite[i])
            continue;
        count++;
        for (long long j = (long long)i * i; j < below; j += i) /* long has 32 bits here */
            composite[j] = 1;
    }
    printf("%ld primes below %ld\n", count, below);
    return 0;
}
