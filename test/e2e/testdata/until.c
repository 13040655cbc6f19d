// Ends well as soon as the file that it is given exists.
#include <stdio.h>
#include <unistd.h>

int main(int argc, char **argv) {
    for (;;) {
        FILE *f = fopen(argv[1], "r");
        if (f) {
            fclose(f);
            return 0;
        }
        usleep(100000);
    }
}
