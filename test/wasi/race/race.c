/*
 * race swap SECONDS: exchanges the directory d with links that lead out.
 * race open SECONDS: opens, makes and removes below d meanwhile; fails if what
 * it finds isn't its own, or if it saw only one of directory and link.
 */
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

static double seconds(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec + t.tv_nsec / 1e9;
}

static int swap(double end) {
    symlink("../outside", "/relative");
    symlink("..", "/up");
    while (seconds() < end)
        for (int i = 0; i < 2; i++) {
            const char *link = i ? "/relative" : "/up";
            rename("/d", "/away"), rename(link, "/d");
            rename("/d", link), rename("/away", "/d");
        }
    return 0;
}

static int opens(double end) {
    long found = 0, refused = 0;
    /* As long as it takes to see both. */
    while (seconds() < end || ((!found || !refused) && seconds() < end + 30)) {
        const char *paths[] = {"/d/f", "/d/../d/f", "/d/e/../f"};
        for (int i = 0; i < 3; i++) {
            char b[16] = {0};
            int fd = open(paths[i], O_RDONLY);
            if (fd < 0) {
                refused++;
                continue;
            }
            found++;
            read(fd, b, sizeof b - 1);
            close(fd);
            if (strcmp(b, "inside")) {
                printf("%s has %s\n", paths[i], b);
                return 1;
            }
        }
        int fd = open("/d/new", O_CREAT | O_WRONLY, 0644);
        if (fd >= 0) close(fd);
        unlink("/d/new");
        mkdir("/d/dir", 0755);
        rmdir("/d/dir");
        struct timespec then[2] = {{1, 0}, {1, 0}};
        utimensat(AT_FDCWD, "/d/f", then, 0);
    }
    printf("%ld found, %ld refused\n", found, refused);
    return !found || !refused;
}

int main(int argc, char **argv) {
    double end = seconds() + atof(argv[2]);
    return strcmp(argv[1], "swap") ? opens(end) : swap(end);
}
