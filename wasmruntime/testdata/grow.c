/* Takes memory until there is no more, and touches all of it. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
char *volatile last;
int main(void) {
    long n = 0;
    for (char *p; (p = malloc(1 << 20)); n++) { memset(p, 1, 1 << 20); last = p; }
    printf("%ld MiB\n", n);
    return 0;
}
