/* Single files in directories that have others: /etc of an image that is read-only, and /data, a volume. */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define MUST(x) do { if (!(x)) { printf("%s:%d: %s: %s\n", __FILE__, __LINE__, #x, strerror(errno)); return 1; } } while (0)

static int says(const char *path, const char *want) {
    char b[64] = {0};
    int fd = open(path, O_RDONLY);
    if (fd < 0) return 0;
    int n = read(fd, b, 63);
    close(fd);
    return n == (int)strlen(want) && !strcmp(b, want);
}

/* counts says how often a directory lists a name, and how many names it lists. */
static int counts(const char *path, const char *name, int *all) {
    DIR *dir = opendir(path);
    int n = 0;
    *all = 0;
    if (!dir) return -1;
    for (struct dirent *e; (e = readdir(dir));) {
        if (e->d_name[0] == '.') continue;
        ++*all;
        n += !strcmp(e->d_name, name);
    }
    closedir(dir);
    return n;
}

int main(void) {
    struct stat st;
    int all, fd;
    MUST(says("/etc/hosts", "node"));
    MUST(says("/etc/motd", "motd"));
    MUST(says("/etc/passwd", "image"));
    MUST(says("/etc/ssl/certs/ca.pem", "ca"));
    MUST(says("/etc/ssl/../hosts", "node"));
    MUST(says("/other", "other"));
    MUST(stat("/etc/passwd", &st) == 0 && st.st_size == 5);
    MUST(stat("/etc/hosts", &st) == 0 && st.st_size == 4);
    MUST(counts("/etc", "hosts", &all) == 1 && all == 304);
    MUST(counts("/etc", "passwd", &all) == 1);
    MUST(counts("/etc", "motd", &all) == 1);
    MUST(open("/etc/none", O_RDONLY) == -1 && errno == ENOENT);
    MUST(open("/etc/new", O_CREAT | O_WRONLY, 0666) == -1 && errno == EROFS);
    MUST(unlink("/etc/passwd") == -1 && errno == EROFS);
    MUST(unlink("/etc/hosts") == -1 && errno == EROFS);

    MUST(says("/data/fixed", "fixed"));
    MUST((fd = open("/data/new", O_CREAT | O_RDWR, 0666)) >= 0 && write(fd, "x", 1) == 1 && close(fd) == 0);
    MUST(says("/data/new", "x"));
    MUST(rename("/data/new", "/data/moved") == 0 && says("/data/moved", "x"));
    MUST(rename("/data/moved", "/data/fixed") == -1 && errno == EROFS);
    MUST(unlink("/data/fixed") == -1 && errno == EROFS);
    MUST(counts("/data", "fixed", &all) == 1 && all == 2);
    printf("singles work\n");
    return 0;
}
