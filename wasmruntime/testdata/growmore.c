/* Takes memory until there is no more, and again for each line of stdin. */
#include <stdio.h>
#include <stdlib.h>
char *volatile last;
int main(void) {
    char line[64];
    long n = 0;
    do {
        /* Hardly touched: the kernel counts what is. */
        for (char *p; (p = malloc(1 << 18)); n++) last = p;
        printf("%ld MiB\n", n / 4);
        fflush(stdout);
    } while (fgets(line, sizeof line, stdin));
    return 0;
}
