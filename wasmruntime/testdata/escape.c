/* Tries to leave the directory /data, and says of each way what came of it. */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
static int escaped;
static void try(const char *what, const char *path) {
    int fd = open(path, O_RDONLY);
    if (fd >= 0) {
        char b[64] = {0};
        read(fd, b, sizeof b - 1);
        if (strstr(b, "SECRET")) { escaped = 1; printf("ESCAPED by %s\n", what); }
        else printf("%s: opened, no secret\n", what);
        close(fd);
    } else printf("%s: %s\n", what, strerror(errno));
}
int main(void) {
    try("dot-dot", "/data/../secret");
    try("dot-dot deep", "/data/sub/../../secret");
    try("host link", "/data/hostlink");
    try("host absolute link", "/data/abslink");
    try("host dir link", "/data/dirlink/secret");
    if (symlink("../secret", "/data/mine") != 0) printf("symlink: %s\n", strerror(errno));
    try("own link", "/data/mine");
    if (symlink("/etc/passwd", "/data/abs") != 0) printf("absolute symlink: %s\n", strerror(errno));
    try("own absolute link", "/data/abs");
    mkdir("/data/a", 0777); mkdir("/data/a/b", 0777);
    symlink("a/b/../../..", "/data/up");
    try("link up", "/data/up/secret");
    if (rename("/data/../secret", "/data/got") == 0) { escaped = 1; printf("ESCAPED by rename\n"); }
    if (link("/data/../secret", "/data/got") == 0) { escaped = 1; printf("ESCAPED by link\n"); }
    if (unlink("/data/../secret") == 0) { escaped = 1; printf("ESCAPED by unlink\n"); }
    if (mkdir("/data/../made", 0777) == 0) { escaped = 1; printf("ESCAPED by mkdir\n"); }
    struct stat st;
    if (stat("/data/mine", &st) == 0) { escaped = 1; printf("ESCAPED by stat\n"); }
    printf("inside: %s\n", open("/data/ok", O_CREAT | O_RDWR, 0666) >= 0 ? "works" : strerror(errno));
    try("link within", "/data/within");
    return escaped;
}
