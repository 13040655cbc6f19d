/* Copies stdin to stdout, line by line. */
#include <stdio.h>
int main(void) {
    char b[256];
    while (fgets(b, sizeof b, stdin)) { fputs(b, stdout); fflush(stdout); }
    return 0;
}
