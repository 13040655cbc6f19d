/* Prints its arguments and environment, and ends with the code in EXIT. */
#include <stdio.h>
#include <stdlib.h>
extern char **environ;
int main(int argc, char **argv) {
    for (int i = 0; i < argc; i++) printf("arg %s\n", argv[i]);
    for (char **e = environ; *e; e++) printf("env %s\n", *e);
    fprintf(stderr, "to stderr\n");
    const char *code = getenv("EXIT");
    return code ? atoi(code) : 0;
}
