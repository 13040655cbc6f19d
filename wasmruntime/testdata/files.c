/* Ordinary work with files in /data, /ro (read-only) and the single file /etc/motd. */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
#define MUST(c) do { if (!(c)) { printf("line %d: %s: %s\n", __LINE__, #c, strerror(errno)); return 1; } } while (0)
int main(void) {
    char b[64] = {0};
    int fd = open("/data/f", O_CREAT | O_RDWR | O_TRUNC, 0666);
    MUST(fd >= 0);
    MUST(write(fd, "hello world", 11) == 11);
    MUST(lseek(fd, 6, SEEK_SET) == 6);
    MUST(read(fd, b, 5) == 5 && !strcmp(b, "world"));
    MUST(pwrite(fd, "W", 1, 6) == 1);
    MUST(ftruncate(fd, 8) == 0);
    struct stat st;
    MUST(fstat(fd, &st) == 0 && st.st_size == 8 && S_ISREG(st.st_mode));
    close(fd);
    fd = open("/data/f", O_WRONLY | O_APPEND);
    MUST(write(fd, "!!", 2) == 2);
    close(fd);
    MUST(stat("/data/f", &st) == 0 && st.st_size == 10);
    MUST(mkdir("/data/d", 0777) == 0);
    MUST(rename("/data/f", "/data/d/g") == 0);
    MUST(symlink("d/g", "/data/l") == 0);
    memset(b, 0, sizeof b);
    MUST(readlink("/data/l", b, sizeof b) == 3 && !strcmp(b, "d/g"));
    MUST(stat("/data/l", &st) == 0 && st.st_size == 10);
    MUST(lstat("/data/l", &st) == 0 && S_ISLNK(st.st_mode));
    MUST(rmdir("/data/d") == -1 && errno == ENOTEMPTY);
    MUST(unlink("/data/d") == -1 && errno == EISDIR);
    for (int i = 0; i < 300; i++) {
        char p[64];
        snprintf(p, sizeof p, "/data/d/file-with-a-longer-name-%03d", i);
        MUST((fd = open(p, O_CREAT | O_WRONLY, 0666)) >= 0);
        close(fd);
    }
    DIR *dir = opendir("/data/d");
    MUST(dir);
    int n = 0;
    for (struct dirent *e; (e = readdir(dir));) n += e->d_name[0] != '.';
    MUST(n == 301);
    closedir(dir);
    MUST(open("/ro/x", O_RDWR) == -1 && errno == EROFS);
    MUST(open("/ro/new", O_CREAT | O_WRONLY, 0666) == -1 && errno == EROFS);
    MUST(unlink("/ro/x") == -1 && errno == EROFS);
    MUST(mkdir("/ro/m", 0777) == -1 && errno == EROFS);
    MUST((fd = open("/ro/x", O_RDONLY)) >= 0);
    memset(b, 0, sizeof b);
    MUST(read(fd, b, 63) == 2 && !strcmp(b, "ro"));
    MUST((fd = open("/etc/motd", O_RDONLY)) >= 0);
    memset(b, 0, sizeof b);
    MUST(read(fd, b, 63) == 4 && !strcmp(b, "motd"));
    MUST(open("/etc/passwd", O_RDONLY) == -1 && errno == ENOENT);
    MUST((dir = opendir("/etc")));
    n = 0;
    for (struct dirent *e; (e = readdir(dir));) n++;
    MUST(n == 1);
    MUST(open("/nowhere", O_RDONLY) == -1);
    printf("files work\n");
    return 0;
}
