/* Writes to both outputs without an end, and without a line's end. */
#include <string.h>
#include <unistd.h>
int main(void) {
    static char b[65536];
    memset(b, 'x', sizeof b);
    for (;;)
        if (write(1, b, sizeof b) < 0 || write(2, b, sizeof b) < 0) return 1;
}
