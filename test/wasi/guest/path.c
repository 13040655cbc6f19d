/* Names: opening, links, renaming, removing, and what a path may be. */
#include "suite.h"

static u32 open_as(u32 dir, u32 lookup, const char *path, u32 oflags, u64 rights) {
    u32 fd = -1, e = w_path_open(dir, lookup, path, strlen(path), oflags, rights, 0, 0, &fd);
    if (!e) w_fd_close(fd);
    return e;
}

CASE("path_open", "finds by every spelling of a path within the directory") {
    OK(w_path_create_directory(dir, S("d")));
    OK(w_path_create_directory(dir, S("d/e")));
    touch(dir, "d/e/f", "x");
    const char *paths[] = {"d/e/f", "./d/e/f", "d//e///f", "d/./e/./f", "d/e/../e/f", "d/../d/e/../../d/e/f"};
    for (int i = 0; i < 6; i++) EQ(open_as(dir, 0, paths[i], 0, R_READ), SUCCESS);
    EQ(open_as(dir, 0, "d/e/", 0, 0), SUCCESS);
    EQ(open_as(dir, 0, "d/e///", O_DIRECTORY_, 0), SUCCESS);
    EQ(open_as(dir, 0, ".", 0, 0), SUCCESS);
    EQ(open_as(dir, 0, "d/..", 0, 0), SUCCESS);
}
CASE("path_open", "PERM for absolute paths and those that lead out, also through links") {
    OK(w_path_create_directory(dir, S("d")));
    EQ(open_as(dir, 0, "/", 0, 0), PERM);
    EQ(open_as(dir, 0, "/etc/passwd", 0, R_READ), PERM);
    EQ(open_as(dir, 0, "..", 0, 0), PERM);
    EQ(open_as(dir, 0, "d/../../x", 0, 0), PERM);
    EQ(open_as(dir, 0, "../x", O_CREAT_, 0), PERM);
    OK(w_path_symlink(S("../.."), dir, S("d/up")));
    EQ(open_as(dir, 0, "d/up/x", 0, 0), PERM);
    EQ(open_as(dir, FOLLOW, "d/up", 0, 0), PERM);
    EQ(open_as(dir, FOLLOW, "d/up", O_CREAT_, R_WRITE), PERM);
}
CASE("path_open", "NOENT, NOTDIR for a file in the middle or with a slash, INVAL for a NUL, ILSEQ, NAMETOOLONG, FAULT") {
    static char much[5000];
    u32 fd;
    touch(dir, "f", "");
    memset(much, 'a', sizeof much);
    EQ(open_as(dir, 0, "x", 0, 0), NOENT);
    EQ(open_as(dir, 0, "x/y", 0, 0), NOENT);
    EQ(open_as(dir, 0, "", 0, 0), NOENT);
    EQ(open_as(dir, 0, "f/y", 0, 0), NOTDIR);
    EQ(open_as(dir, 0, "f/", 0, 0), NOTDIR);
    EQ(open_as(dir, 0, "f///", 0, R_READ), NOTDIR);
    EQ(w_path_open(dir, 0, "f\0", 2, 0, 0, 0, 0, &fd), INVAL);
    EQ(w_path_open(dir, 0, "\xff\xfe", 2, O_CREAT_, 0, 0, 0, &fd), ILSEQ);
    EQ(w_path_open(dir, 0, much, 256, O_CREAT_, 0, 0, 0, &fd), NAMETOOLONG);
    EQ(w_path_open(dir, 0, much, sizeof much, O_CREAT_, 0, 0, 0, &fd), NAMETOOLONG);
    EQ(w_path_open(dir, 0, OUTSIDE, 64, 0, 0, 0, 0, &fd), FAULT);
    EQ(w_path_open(dir, 0, "f", 1, 0, 0, 0, 0, OUTSIDE), FAULT);
    EQ(w_path_open(dir, 0, (void *)0xffffffffu, 2, 0, 0, 0, 0, &fd), FAULT);
}
CASE("path_open", "BADF, NOTDIR for a descriptor that is none, INVAL for unknown flags, NOTCAPABLE, PERM") {
    u32 fd, f = create(dir, "f", "");
    EQ(open_as(9999, 0, "f", 0, 0), BADF);
    EQ(open_as(f, 0, "g", O_CREAT_, 0), NOTDIR);
    EQ(open_as(0, 0, "g", O_CREAT_, 0), NOTDIR);
    EQ(w_path_open(dir, 2, "f", 1, 0, 0, 0, 0, &fd), INVAL);
    EQ(w_path_open(dir, 0, "f", 1, 16, 0, 0, 0, &fd), INVAL);
    EQ(w_path_open(dir, 0, "f", 1, 0, 0, 0, 32, &fd), INVAL);
    u32 none = open_at(dir, ".", O_DIRECTORY_, R_READDIR, 0);
    EQ(open_as(none, 0, "f", 0, 0), NOTCAPABLE);
    OK(w_path_open(dir, 0, ".", 1, O_DIRECTORY_, R_OPEN, R_READ, 0, &none));
    EQ(open_as(none, 0, "f", 0, R_READ), SUCCESS);
    EQ(open_as(none, 0, "g", O_CREAT_, R_READ), NOTCAPABLE);
    EQ(open_as(none, 0, "f", O_TRUNC_, R_READ), PERM);
}
CASE("path_open", "rights are those that the directory hands down and that were asked for") {
    u32 d, fd;
    touch(dir, "f", "x");
    OK(w_path_open(dir, 0, ".", 1, O_DIRECTORY_, R_OPEN, R_READ | R_SEEK, 0, &d));
    OK(w_path_open(d, 0, "f", 1, 0, R_FILE, R_FILE, 0, &fd));
    EQ(fdstat(fd).base, R_READ | R_SEEK);
    EQ(fdstat(fd).inheriting, 0);
    OK(w_path_open(dir, 0, ".", 1, O_DIRECTORY_, R_OPEN | R_SEEK, 0, 0, &d));
    EQ(fdstat(d).base, R_OPEN);
}
CASE("path_open", "CREAT, EXCL, TRUNC and DIRECTORY") {
    EQ(open_as(dir, 0, "f", O_CREAT_ | O_EXCL_, 0), SUCCESS);
    EQ(open_as(dir, 0, "f", O_CREAT_ | O_EXCL_, 0), EXIST);
    EQ(open_as(dir, 0, "f", O_CREAT_, 0), SUCCESS);
    touch(dir, "g", "abc");
    EQ(open_as(dir, 0, "g", O_TRUNC_, R_WRITE), SUCCESS);
    EQ(stat_at(dir, "g").size, 0);
    touch(dir, "g", "abc");
    EQ(open_as(dir, 0, "g", O_TRUNC_, 0), SUCCESS); /* without a right to write */
    EQ(stat_at(dir, "g").size, 0);
    EQ(open_as(dir, 0, "f", O_DIRECTORY_, 0), NOTDIR);
    EQ(open_as(dir, 0, "new/", O_CREAT_, 0), ISDIR);
    EQ(open_as(dir, 0, "x/y", O_CREAT_, 0), NOENT);
    EQ(open_as(dir, 0, ".", O_DIRECTORY_ | O_CREAT_, 0), INVAL);
    OK(w_path_symlink(S("nothing"), dir, S("dangling")));
    EQ(open_as(dir, 0, "dangling", O_CREAT_ | O_EXCL_, 0), EXIST);
}
CASE("path_open", "a directory can't be opened to write, and can with all rights to list it") {
    OK(w_path_create_directory(dir, S("d")));
    EQ(open_as(dir, 0, "d", 0, R_READ), SUCCESS);
    EQ(open_as(dir, 0, "d", O_DIRECTORY_, R_READ), SUCCESS);
    EQ(open_as(dir, 0, "d", 0, R_WRITE), ISDIR);
    EQ(open_as(dir, 0, "d", O_DIRECTORY_, R_READ | R_WRITE), ISDIR);
    EQ(open_as(dir, 0, "d", O_TRUNC_, R_WRITE), ISDIR);
    EQ(open_as(dir, 0, "d", O_DIRECTORY_, -1ull), SUCCESS);
    EQ(open_as(dir, 0, "d", 0, -1ull), SUCCESS);
    EQ(open_as(dir, 0, "nothing", O_DIRECTORY_, R_READ | R_WRITE), NOENT);
}
CASE("path_open", "LOOP for a link that isn't to be followed, and one that goes round") {
    OK(w_path_create_directory(dir, S("d")));
    touch(dir, "f", "x");
    OK(w_path_symlink(S("d"), dir, S("ld")));
    OK(w_path_symlink(S("f"), dir, S("lf")));
    OK(w_path_symlink(S("round"), dir, S("round")));
    OK(w_path_symlink(S("nothing"), dir, S("dangling")));
    EQ(open_as(dir, 0, "lf", 0, R_READ), LOOP);
    EQ(open_as(dir, FOLLOW, "lf", 0, R_READ), SUCCESS);
    EQ(open_as(dir, 0, "ld", 0, 0), LOOP);
    EQ(open_as(dir, 0, "ld", O_DIRECTORY_, 0), NOTDIR);
    EQ(open_as(dir, FOLLOW, "ld", O_DIRECTORY_, 0), SUCCESS);
    EQ(open_as(dir, FOLLOW, "lf", O_DIRECTORY_, 0), NOTDIR);
    EQ(open_as(dir, 0, "ld/../f", 0, R_READ), SUCCESS);
    EQ(open_as(dir, 0, "round", 0, 0), LOOP);
    EQ(open_as(dir, FOLLOW, "round", 0, 0), LOOP);
    EQ(open_as(dir, 0, "dangling", 0, 0), LOOP);
    EQ(open_as(dir, FOLLOW, "dangling", 0, 0), NOENT);
    EQ(open_as(dir, FOLLOW, "dangling", O_CREAT_, R_WRITE), SUCCESS);
    EQ(stat_at(dir, "nothing").type, REGULAR);
}
CASE("path_open", "NONBLOCK, also of a directory; APPEND, DSYNC, RSYNC and SYNC stay") {
    u32 fd = open_at(dir, ".", 0, 0, F_NONBLOCK);
    EQ(fdstat(fd).type, DIRECTORY);
    for (u32 f = 1; f <= 16; f *= 2) EQ(fdstat(open_at(dir, "f", O_CREAT_, R_READ | R_WRITE, f)).flags, f);
}
CASE("path_open", "NFILE or MFILE when there are no more descriptors, and room after closing") {
    u32 fds[5000], n = 0, e;
    touch(dir, "f", "");
    while (n < 5000 && !(e = w_path_open(dir, 0, "f", 1, 0, R_READ, 0, 0, &fds[n]))) n++;
    EQ(e == NFILE || e == MFILE, 1);
    EQ(n > 1000, 1);
    while (n > 0) OK(w_fd_close(fds[--n]));
    EQ(open_as(dir, 0, "f", 0, R_READ), SUCCESS);
}
CASE("path_filestat_get", "of a file, a directory and a link, followed and not") {
    struct filestat a, b;
    OK(w_path_create_directory(dir, S("d")));
    touch(dir, "d/f", "abc");
    OK(w_path_symlink(S("d/f"), dir, S("l")));
    a = stat_at(dir, "d/f");
    EQ(a.type, REGULAR);
    EQ(a.size, 3);
    EQ(stat_at(dir, "d").type, DIRECTORY);
    EQ(stat_at(dir, "d/").type, DIRECTORY);
    EQ(stat_at(dir, ".").type, DIRECTORY);
    EQ(stat_at(dir, "l").type, SYMLINK);
    EQ(stat_at(dir, "l").size, 3); /* of its text */
    OK(w_path_filestat_get(dir, FOLLOW, S("l"), &b));
    EQ(b.type, REGULAR);
    EQ(a.ino, b.ino);
    EQ(a.dev, b.dev);
}
CASE("path_filestat_get", "NOENT, NOTDIR, LOOP, PERM, BADF, FAULT, NOTCAPABLE") {
    struct filestat st;
    touch(dir, "f", "");
    OK(w_path_symlink(S("round"), dir, S("round")));
    OK(w_path_symlink(S("../f"), dir, S("out")));
    EQ(w_path_filestat_get(dir, 0, S("x"), &st), NOENT);
    EQ(w_path_filestat_get(dir, 0, S("f/x"), &st), NOTDIR);
    EQ(w_path_filestat_get(dir, 0, S("f/"), &st), NOTDIR);
    EQ(w_path_filestat_get(dir, FOLLOW, S("round"), &st), LOOP);
    EQ(w_path_filestat_get(dir, FOLLOW, S("out"), &st), PERM);
    EQ(w_path_filestat_get(dir, 0, S("../c0"), &st), PERM);
    EQ(w_path_filestat_get(9999, 0, S("f"), &st), BADF);
    EQ(w_path_filestat_get(dir, 0, S("f"), OUTSIDE), FAULT);
    EQ(w_path_filestat_get(dir, 2, S("f"), &st), INVAL);
    EQ(w_path_filestat_get(open_at(dir, ".", O_DIRECTORY_, R_OPEN, 0), 0, S("f"), &st), NOTCAPABLE);
}
CASE("path_filestat_set_times", "of a file, of a link itself and through it") {
    touch(dir, "f", "");
    OK(w_path_symlink(S("f"), dir, S("l")));
    OK(w_path_filestat_set_times(dir, 0, S("f"), 11, 22, T_ATIM | T_MTIM));
    EQ(stat_at(dir, "f").atim, 11);
    EQ(stat_at(dir, "f").mtim, 22);
    OK(w_path_filestat_set_times(dir, 0, S("l"), 0, 1500000000000000033, T_MTIM));
    EQ(stat_at(dir, "l").mtim, 1500000000000000033);
    EQ(stat_at(dir, "f").mtim, 22);
    OK(w_path_filestat_set_times(dir, FOLLOW, S("l"), 0, 44, T_MTIM));
    EQ(stat_at(dir, "l").mtim, 1500000000000000033);
    EQ(stat_at(dir, "f").mtim, 44);
    EQ(stat_at(dir, "f").atim, 11);
    u64 before = now(REALTIME) - 1000000000;
    OK(w_path_filestat_set_times(dir, 0, S("f"), 0, 0, T_MTIM_NOW));
    EQ(stat_at(dir, "f").mtim > before, 1);
}
CASE("path_filestat_set_times", "INVAL, NOENT, PERM, BADF, NOTCAPABLE") {
    touch(dir, "f", "");
    OK(w_path_filestat_set_times(dir, 0, S("f"), 1, 1, T_ATIM | T_MTIM));
    EQ(w_path_filestat_set_times(dir, 0, S("f"), 9, 9, T_MTIM | T_MTIM_NOW), INVAL);
    EQ(w_path_filestat_set_times(dir, 0, S("f"), 9, 9, T_ATIM | T_ATIM_NOW), INVAL);
    EQ(w_path_filestat_set_times(dir, 0, S("f"), 9, 9, 16), INVAL);
    EQ(stat_at(dir, "f").mtim, 1);
    EQ(w_path_filestat_set_times(dir, 0, S("x"), 9, 9, T_MTIM), NOENT);
    EQ(w_path_filestat_set_times(dir, 0, S("../c0"), 9, 9, T_MTIM), PERM);
    EQ(w_path_filestat_set_times(9999, 0, S("f"), 9, 9, T_MTIM), BADF);
    EQ(w_path_filestat_set_times(dir, 2, S("f"), 9, 9, T_MTIM), INVAL);
    EQ(w_path_filestat_set_times(open_at(dir, ".", O_DIRECTORY_, R_OPEN, 0), 0, S("f"), 9, 9, T_MTIM), NOTCAPABLE);
}
CASE("path_link", "a second name, in another directory too; of a link itself") {
    u32 sub;
    touch(dir, "f", "abc");
    OK(w_path_link(dir, 0, S("f"), dir, S("g")));
    EQ(stat_at(dir, "g").ino, stat_at(dir, "f").ino);
    EQ(stat_at(dir, "f").nlink, 2);
    OK(w_path_create_directory(dir, S("d")));
    OK(w_path_open(dir, 0, "d", 1, O_DIRECTORY_, R_LINK_TARGET | R_OPEN, R_READ, 0, &sub));
    OK(w_path_link(dir, 0, S("f"), sub, S("h")));
    is(sub, "h", "abc");
    OK(w_path_symlink(S("nothing"), dir, S("dangling")));
    OK(w_path_link(dir, 0, S("dangling"), dir, S("l")));
    EQ(stat_at(dir, "l").type, SYMLINK);
}
CASE("path_link", "EXIST, NOENT, PERM for a directory, INVAL when a link is to be followed, BADF, NOTCAPABLE") {
    touch(dir, "f", "");
    touch(dir, "g", "");
    OK(w_path_create_directory(dir, S("d")));
    OK(w_path_symlink(S("nothing"), dir, S("l")));
    EQ(w_path_link(dir, 0, S("f"), dir, S("g")), EXIST);
    EQ(w_path_link(dir, 0, S("f"), dir, S("f")), EXIST);
    EQ(w_path_link(dir, 0, S("f"), dir, S("d")), EXIST);
    EQ(w_path_link(dir, 0, S("f"), dir, S("l")), EXIST);
    EQ(w_path_link(dir, 0, S("x"), dir, S("y")), NOENT);
    EQ(w_path_link(dir, 0, S("f"), dir, S("y/")), NOENT);
    EQ(w_path_link(dir, 0, S("f"), dir, S("x/y")), NOENT);
    EQ(w_path_link(dir, 0, S("d"), dir, S("y")), PERM);
    EQ(w_path_link(dir, FOLLOW, S("l"), dir, S("y")), INVAL);
    EQ(w_path_link(dir, 2, S("f"), dir, S("y")), INVAL);
    EQ(w_path_link(dir, 0, S("../c0"), dir, S("y")), PERM);
    EQ(w_path_link(dir, 0, S("f"), dir, S("../y")), PERM);
    EQ(w_path_link(9999, 0, S("f"), dir, S("y")), BADF);
    EQ(w_path_link(dir, 0, S("f"), 9999, S("y")), BADF);
    u32 none = open_at(dir, ".", O_DIRECTORY_, R_LINK_SOURCE, 0);
    EQ(w_path_link(dir, 0, S("f"), none, S("y")), NOTCAPABLE);
    none = open_at(dir, ".", O_DIRECTORY_, R_LINK_TARGET, 0);
    EQ(w_path_link(none, 0, S("f"), dir, S("y")), NOTCAPABLE);
}
CASE("path_symlink", "any text that is relative; path_readlink gives it back") {
    char b[16] = "???????????????";
    u32 n = 99;
    OK(w_path_symlink(S("../no/where"), dir, S("l")));
    OK(w_path_readlink(dir, S("l"), b, sizeof b, &n));
    EQ(n, 11);
    EQ(memcmp(b, "../no/where????", 15), 0);
}
CASE("path_symlink", "PERM for an absolute one, EXIST, NOENT, BADF, FAULT, NOTCAPABLE") {
    touch(dir, "f", "");
    OK(w_path_create_directory(dir, S("d")));
    EQ(w_path_symlink(S("/"), dir, S("l")), PERM);
    EQ(w_path_symlink(S("/etc/passwd"), dir, S("l")), PERM);
    EQ(w_path_symlink(S(""), dir, S("l")), NOENT);
    EQ(w_path_symlink(S("a"), dir, S("f")), EXIST);
    EQ(w_path_symlink(S("a"), dir, S("d")), EXIST);
    EQ(w_path_symlink(S("a"), dir, S("d/")), EXIST);
    EQ(w_path_symlink(S("a"), dir, S("f/")), NOTDIR);
    EQ(w_path_symlink(S("a"), dir, S("x/")), NOENT);
    EQ(w_path_symlink(S("a"), dir, S("x/y")), NOENT);
    EQ(w_path_symlink(S("a"), dir, S("../y")), PERM);
    EQ(w_path_symlink(S("a"), 9999, S("l")), BADF);
    EQ(w_path_symlink(OUTSIDE, 64, dir, S("l")), FAULT);
    EQ(w_path_symlink(S("a"), open_at(dir, ".", O_DIRECTORY_, R_OPEN, 0), S("l")), NOTCAPABLE);
}
CASE("path_readlink", "cuts off at the end of a short buffer") {
    char b[8] = "???????";
    u32 n = 99;
    OK(w_path_symlink(S("target"), dir, S("l")));
    OK(w_path_readlink(dir, S("l"), b, 4, &n));
    EQ(n, 4);
    EQ(memcmp(b, "targ???", 7), 0);
    OK(w_path_readlink(dir, S("l"), b, 0, &n));
    EQ(n, 0);
}
CASE("path_readlink", "INVAL for what is no link, NOENT, PERM, BADF, FAULT, NOTCAPABLE") {
    char b[8];
    u32 n;
    touch(dir, "f", "");
    OK(w_path_symlink(S("target"), dir, S("l")));
    EQ(w_path_readlink(dir, S("f"), b, 8, &n), INVAL);
    EQ(w_path_readlink(dir, S("."), b, 8, &n), INVAL);
    EQ(w_path_readlink(dir, S("x"), b, 8, &n), NOENT);
    EQ(w_path_readlink(dir, S("../x"), b, 8, &n), PERM);
    EQ(w_path_readlink(9999, S("l"), b, 8, &n), BADF);
    EQ(w_path_readlink(dir, S("l"), OUTSIDE, 64, &n), FAULT);
    EQ(w_path_readlink(dir, S("l"), b, 8, OUTSIDE), FAULT);
    EQ(w_path_readlink(open_at(dir, ".", O_DIRECTORY_, R_OPEN, 0), S("l"), b, 8, &n), NOTCAPABLE);
}
CASE("path_rename", "files and directories, onto what there is, between directories") {
    struct filestat st;
    touch(dir, "a", "A");
    OK(w_path_rename(dir, S("a"), dir, S("b")));
    EQ(w_path_filestat_get(dir, 0, S("a"), &st), NOENT);
    touch(dir, "c", "C");
    OK(w_path_rename(dir, S("c"), dir, S("b")));
    is(dir, "b", "C");
    OK(w_path_create_directory(dir, S("d")));
    OK(w_path_create_directory(dir, S("e")));
    OK(w_path_rename(dir, S("d"), dir, S("e"))); /* an empty one */
    EQ(w_path_filestat_get(dir, 0, S("d"), &st), NOENT);
    OK(w_path_rename(dir, S("e/"), dir, S("d")));
    OK(w_path_rename(dir, S("d"), dir, S("e/")));
    OK(w_path_rename(dir, S("b"), dir, S("e/b")));
    is(dir, "e/b", "C");
    OK(w_path_symlink(S("e"), dir, S("l")));
    OK(w_path_rename(dir, S("l"), dir, S("m")));
    EQ(stat_at(dir, "m").type, SYMLINK);
    OK(w_path_rename(dir, S("m"), dir, S("m")));
}
CASE("path_rename", "NOTEMPTY, NOTDIR, ISDIR, NOENT, INVAL into itself, BUSY for dot, PERM, BADF, NOTCAPABLE") {
    touch(dir, "f", "");
    OK(w_path_create_directory(dir, S("d")));
    OK(w_path_create_directory(dir, S("e")));
    touch(dir, "e/f", "");
    EQ(w_path_rename(dir, S("d"), dir, S("e")), NOTEMPTY);
    EQ(w_path_rename(dir, S("d"), dir, S("f")), NOTDIR);
    EQ(w_path_rename(dir, S("f"), dir, S("d")), ISDIR);
    EQ(w_path_rename(dir, S("f"), dir, S("x/")), NOTDIR);
    EQ(w_path_rename(dir, S("x"), dir, S("y")), NOENT);
    EQ(w_path_rename(dir, S("f"), dir, S("x/y")), NOENT);
    EQ(w_path_rename(dir, S("e"), dir, S("e/e")), INVAL);
    EQ(w_path_rename(dir, S("."), dir, S("y")), BUSY);
    EQ(w_path_rename(dir, S("f"), dir, S("../y")), PERM);
    EQ(w_path_rename(dir, S("../c0"), dir, S("y")), PERM);
    EQ(w_path_rename(9999, S("f"), dir, S("y")), BADF);
    EQ(w_path_rename(dir, S("f"), 9999, S("y")), BADF);
    EQ(w_path_rename(open_at(dir, ".", O_DIRECTORY_, R_RENAME_TARGET, 0), S("f"), dir, S("y")), NOTCAPABLE);
    EQ(w_path_rename(dir, S("f"), open_at(dir, ".", O_DIRECTORY_, R_RENAME_SOURCE, 0), S("y")), NOTCAPABLE);
}
CASE("path_unlink_file", "a file that is open lives on; a link goes, not what it names") {
    char b[4];
    u32 fd = create(dir, "f", "abc");
    OK(w_path_symlink(S("f"), dir, S("l")));
    OK(w_path_unlink_file(dir, S("l")));
    EQ(stat_at(dir, "f").size, 3);
    OK(w_path_unlink_file(dir, S("f")));
    EQ(read_some(fd, b, 4), 3);
    struct filestat st;
    OK(w_fd_filestat_get(fd, &st));
    EQ(st.nlink, 0);
}
CASE("path_unlink_file", "ISDIR, NOTDIR with a slash, NOENT, PERM, BADF, NOTCAPABLE") {
    touch(dir, "f", "");
    OK(w_path_create_directory(dir, S("d")));
    EQ(w_path_unlink_file(dir, S("d")), ISDIR);
    EQ(w_path_unlink_file(dir, S("d/")), ISDIR);
    EQ(w_path_unlink_file(dir, S(".")), ISDIR);
    EQ(w_path_unlink_file(dir, S("f/")), NOTDIR);
    EQ(w_path_unlink_file(dir, S("x")), NOENT);
    EQ(w_path_unlink_file(dir, S("../x")), PERM);
    EQ(w_path_unlink_file(9999, S("f")), BADF);
    EQ(w_path_unlink_file(open_at(dir, ".", O_DIRECTORY_, R_OPEN, 0), S("f")), NOTCAPABLE);
    is(dir, "f", "");
}
ALONE("path_open", "a read-only volume reads and never changes") {
    struct filestat st;
    u32 fd, n;
    char b[8];
    u64 at;
    struct iovec_ v = {"x", 1};
    dir = 4; /* the second one, with a file "f" and a directory "d" */
    is(dir, "f", "keep");
    EQ(open_as(dir, 0, "f", 0, R_WRITE), ROFS);
    EQ(open_as(dir, 0, "f", 0, R_READ | R_WRITE), ROFS);
    EQ(open_as(dir, 0, "f", O_TRUNC_, R_READ), ROFS);
    EQ(open_as(dir, 0, "new", O_CREAT_, R_READ), ROFS);
    EQ(open_as(dir, 0, "f", O_CREAT_, R_READ), SUCCESS);
    EQ(open_as(dir, 0, "f", O_CREAT_ | O_EXCL_, R_READ), EXIST);
    EQ(open_as(dir, 0, "d", O_DIRECTORY_, -1ull), SUCCESS);
    EQ(w_path_create_directory(dir, S("new")), ROFS);
    EQ(w_path_remove_directory(dir, S("d")), ROFS);
    EQ(w_path_unlink_file(dir, S("f")), ROFS);
    EQ(w_path_symlink(S("f"), dir, S("l")), ROFS);
    EQ(w_path_rename(dir, S("f"), dir, S("g")), ROFS);
    EQ(w_path_rename(dir, S("f"), 3, S("g")), ROFS);
    EQ(w_path_link(dir, 0, S("f"), 3, S("g")), ROFS);
    EQ(w_path_filestat_set_times(dir, 0, S("f"), 1, 1, T_MTIM), ROFS);
    fd = open_at(dir, "f", 0, R_READ | R_SEEK | R_SET_TIMES | R_SET_SIZE, 0);
    EQ(w_fd_write(fd, &v, 1, &n), BADF);
    EQ(w_fd_pwrite(fd, &v, 1, 0, &n), BADF);
    EQ(w_fd_filestat_set_size(fd, 0) != SUCCESS, 1);
    EQ(w_fd_allocate(fd, 0, 100) != SUCCESS, 1);
    EQ(w_fd_filestat_set_times(fd, 1, 1, T_MTIM) != SUCCESS, 1);
    EQ(w_fd_filestat_set_times(dir, 1, 1, T_MTIM), ROFS);
    OK(w_fd_seek(fd, 1, SET, &at));
    EQ(read_some(fd, b, 8), 3);
    /* What is below it is no better. */
    u32 sub;
    OK(w_path_open(dir, 0, "d", 1, O_DIRECTORY_, -1ull, -1ull, 0, &sub));
    EQ(open_as(sub, 0, "new", O_CREAT_, R_WRITE), ROFS);
    EQ(w_path_create_directory(sub, S("new")), ROFS);
    EQ(w_path_filestat_get(dir, 0, S("new"), &st), NOENT);
}
