/* Says hello and sleeps: what a small pod does all day. */
#include <stdio.h>
#include <unistd.h>
int main(void) {
    printf("hello\n");
    fflush(stdout);
    for (;;) sleep(3600);
}
