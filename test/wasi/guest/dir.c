/* Descriptors of directories, preopened ones, and their listing. */
#include "suite.h"

CASE("fd_prestat_get", "a directory and the length of its name; BADF for what isn't preopened, FAULT") {
    struct prestat st = {9, 9};
    OK(w_fd_prestat_get(3, &st));
    EQ(st.tag, 0);
    EQ(st.len, 1);
    EQ(w_fd_prestat_get(0, &st), BADF);
    EQ(w_fd_prestat_get(dir, &st), BADF);
    EQ(w_fd_prestat_get(9999, &st), BADF);
    EQ(w_fd_prestat_get(3, OUTSIDE), FAULT);
}
CASE("fd_prestat_dir_name", "the name, not more; NAMETOOLONG, NOTDIR, BADF, FAULT") {
    char name[4] = "????";
    OK(w_fd_prestat_dir_name(3, name, 1));
    EQ(memcmp(name, "/???", 4), 0);
    OK(w_fd_prestat_dir_name(3, name, 4));
    EQ(memcmp(name, "/???", 4), 0);
    EQ(w_fd_prestat_dir_name(3, name, 0), NAMETOOLONG);
    EQ(w_fd_prestat_dir_name(0, name, 4), NOTDIR);
    EQ(w_fd_prestat_dir_name(9999, name, 4), BADF);
    EQ(w_fd_prestat_dir_name(3, (void *)0xffffffffu, 1), FAULT);
}
CASE("fd_read", "a directory can't be read, written or positioned") {
    struct iovec_ v = {(char[8]){0}, 8};
    u32 n;
    u64 at;
    EQ(w_fd_read(dir, &v, 1, &n), BADF);
    EQ(w_fd_pread(dir, &v, 1, 0, &n), BADF);
    EQ(w_fd_write(dir, &v, 1, &n), BADF);
    EQ(w_fd_pwrite(dir, &v, 1, 0, &n), BADF);
    EQ(w_fd_seek(dir, 0, SET, &at), BADF);
    EQ(w_fd_tell(dir, &at), BADF);
    EQ(w_fd_allocate(dir, 0, 1), NOTCAPABLE);
}

/* find reads the listing in one piece and looks for a name; 0 without it. */
static struct dirent_ *find(char *buf, u32 used, const char *name) {
    for (u32 i = 0; i + sizeof(struct dirent_) <= used;) {
        struct dirent_ *d = (void *)(buf + i);
        if (i + sizeof *d + d->namlen > used) break;
        if (d->namlen == strlen(name) && !memcmp(d + 1, name, d->namlen)) return d;
        i += sizeof *d + d->namlen;
    }
    return 0;
}

CASE("fd_readdir", "entries with type and inode, dot and dot-dot among them") {
    static char buf[2048];
    u32 used = 0;
    struct filestat st;
    touch(dir, "file", "");
    OK(w_path_create_directory(dir, S("sub")));
    OK(w_path_symlink(S("file"), dir, S("link")));
    OK(w_fd_readdir(dir, buf, sizeof buf, 0, &used));
    EQ(used < sizeof buf, 1);
    struct { const char *name; int type; } want[] = {{".", DIRECTORY}, {"..", DIRECTORY}, {"file", REGULAR}, {"sub", DIRECTORY}, {"link", SYMLINK}};
    u32 sum = 0;
    for (int i = 0; i < 5; i++) {
        struct dirent_ *d = find(buf, used, want[i].name), copy;
        EQ(d != 0, 1);
        if (!d) continue;
        memcpy(&copy, d, sizeof copy);
        EQ(copy.type, want[i].type);
        sum += sizeof copy + copy.namlen;
        if (i > 1) EQ(copy.ino, stat_at(dir, want[i].name).ino);
    }
    EQ(used, sum);
    OK(w_fd_filestat_get(dir, &st));
    struct dirent_ copy;
    memcpy(&copy, find(buf, used, "."), sizeof copy);
    EQ(copy.ino, st.ino);
}
CASE("fd_readdir", "goes on at a cookie; a thousand entries through a small buffer, each once") {
    static char seen[1000];
    char buf[256], name[16];
    for (int i = 0; i < 1000; i++) {
        snprintf(name, sizeof name, "file.%d", i);
        touch(dir, name, "");
    }
    u64 cookie = 0;
    u32 used, total = 0;
    do {
        OK(w_fd_readdir(dir, buf, sizeof buf, cookie, &used));
        for (u32 i = 0; i + sizeof(struct dirent_) <= used;) {
            struct dirent_ d;
            memcpy(&d, buf + i, sizeof d);
            if (i + sizeof d + d.namlen > used) break;
            int n;
            char text[32] = {0};
            memcpy(text, buf + i + sizeof d, d.namlen < 31 ? d.namlen : 31);
            if (sscanf(text, "file.%d", &n) == 1 && n >= 0 && n < 1000) EQ(seen[n]++, 0);
            total++;
            cookie = d.next;
            i += sizeof d + d.namlen;
        }
    } while (used == sizeof buf && total < 5000);
    EQ(total, 1002);
}
CASE("fd_readdir", "cuts the last entry off at the end of the buffer, and fills it") {
    char buf[30] = {0};
    u32 used = 0;
    touch(dir, "a-name-that-is-longer-than-the-buffer-that-is-given", "");
    OK(w_fd_readdir(dir, buf, sizeof buf, 0, &used));
    EQ(used, sizeof buf);
    OK(w_fd_readdir(dir, buf, 0, 0, &used));
    EQ(used, 0);
}
CASE("fd_readdir", "what came since is there after a rewind") {
    static char buf[1024];
    u32 used;
    touch(dir, "a", "");
    OK(w_fd_readdir(dir, buf, sizeof buf, 0, &used));
    touch(dir, "b", "");
    OK(w_path_unlink_file(dir, S("a")));
    OK(w_fd_readdir(dir, buf, sizeof buf, 0, &used));
    EQ(find(buf, used, "b") != 0, 1);
    EQ(find(buf, used, "a") == 0, 1);
}
CASE("fd_readdir", "BADF, NOTDIR, FAULT, NOTCAPABLE") {
    static char buf[256];
    u32 used, fd = create(dir, "f", ""), none = open_at(dir, ".", O_DIRECTORY_, R_OPEN, 0);
    EQ(w_fd_readdir(9999, buf, sizeof buf, 0, &used), BADF);
    EQ(w_fd_readdir(fd, buf, sizeof buf, 0, &used), NOTDIR);
    EQ(w_fd_readdir(dir, OUTSIDE, 64, 0, &used), FAULT);
    EQ(w_fd_readdir(dir, buf, sizeof buf, 0, OUTSIDE), FAULT);
    EQ(w_fd_readdir(none, buf, sizeof buf, 0, &used), NOTCAPABLE);
}
CASE("path_create_directory", "one level, with or without a slash") {
    OK(w_path_create_directory(dir, S("a")));
    OK(w_path_create_directory(dir, S("a/b/")));
    EQ(stat_at(dir, "a/b").type, DIRECTORY);
}
CASE("path_create_directory", "EXIST, NOENT, NOTDIR, PERM out of the directory, BADF, NOTCAPABLE") {
    touch(dir, "f", "");
    OK(w_path_create_directory(dir, S("a")));
    EQ(w_path_create_directory(dir, S("a")), EXIST);
    EQ(w_path_create_directory(dir, S("f")), EXIST);
    EQ(w_path_create_directory(dir, S(".")), EXIST);
    EQ(w_path_create_directory(dir, S("x/y")), NOENT);
    EQ(w_path_create_directory(dir, S("")), NOENT);
    EQ(w_path_create_directory(dir, S("f/y")), NOTDIR);
    EQ(w_path_create_directory(dir, S("../out")), PERM);
    EQ(w_path_create_directory(dir, S("/abs")), PERM);
    EQ(w_path_create_directory(9999, S("b")), BADF);
    EQ(w_path_create_directory(create(dir, "g", ""), S("b")), NOTDIR);
    u32 none = open_at(dir, ".", O_DIRECTORY_, R_OPEN, 0);
    EQ(w_path_create_directory(none, S("b")), NOTCAPABLE);
}
CASE("path_remove_directory", "an empty one, with or without a slash") {
    OK(w_path_create_directory(dir, S("a")));
    OK(w_path_create_directory(dir, S("a/b")));
    EQ(w_path_remove_directory(dir, S("a")), NOTEMPTY);
    OK(w_path_remove_directory(dir, S("a/b/")));
    OK(w_path_remove_directory(dir, S("a")));
}
CASE("path_remove_directory", "NOTDIR for a file and a link, NOENT, INVAL for dot, PERM, BADF, NOTCAPABLE") {
    touch(dir, "f", "");
    OK(w_path_create_directory(dir, S("d")));
    OK(w_path_symlink(S("d"), dir, S("l")));
    EQ(w_path_remove_directory(dir, S("f")), NOTDIR);
    EQ(w_path_remove_directory(dir, S("f/")), NOTDIR);
    EQ(w_path_remove_directory(dir, S("l")), NOTDIR);
    EQ(w_path_remove_directory(dir, S("x")), NOENT);
    EQ(w_path_remove_directory(dir, S(".")), INVAL);
    EQ(w_path_remove_directory(dir, S("../c0")), PERM);
    EQ(w_path_remove_directory(9999, S("d")), BADF);
    EQ(w_path_remove_directory(open_at(dir, ".", O_DIRECTORY_, R_OPEN, 0), S("d")), NOTCAPABLE);
}
