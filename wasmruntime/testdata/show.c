/* Prints the files that its arguments name. */
#include <stdio.h>
int main(int argc, char **argv) {
    char b[4096];
    for (int i = 1; i < argc; i++) {
        FILE *f = fopen(argv[i], "r");
        size_t n;
        if (!f) { perror(argv[i]); return 1; }
        while ((n = fread(b, 1, sizeof b, f)) > 0) fwrite(b, 1, n, stdout);
        fclose(f);
    }
    return 0;
}
