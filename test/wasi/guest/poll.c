/* poll_oneoff on clocks, files, pipes and stdio. */
#include "suite.h"

static struct subscription timer(u64 id, u32 clock, u64 timeout, u32 flags) {
    return (struct subscription){.userdata = id, .tag = EV_CLOCK, .clock = {clock, timeout, 0, flags}};
}
static struct subscription ready(u64 id, u32 tag, u32 fd) { return (struct subscription){.userdata = id, .tag = tag, .rw = {fd}}; }

CASE("poll_oneoff", "a relative time passes, not less and not much more") {
    struct subscription s = timer(0x1234567890abcdef, MONOTONIC, 50000000, 0);
    struct event e;
    u32 n = 9;
    u64 before = now(MONOTONIC);
    OK(w_poll_oneoff(&s, &e, 1, &n));
    u64 took = now(MONOTONIC) - before;
    EQ(n, 1);
    EQ(e.userdata, 0x1234567890abcdef);
    EQ(e.error, SUCCESS);
    EQ(e.type, EV_CLOCK);
    EQ(took >= 50000000, 1);
    EQ(took < 5000000000, 1);
}
CASE("poll_oneoff", "an absolute time, of both clocks, and one that has passed") {
    struct event e;
    u32 n;
    for (u32 id = REALTIME; id <= MONOTONIC; id++) {
        u64 at = now(id) + 30000000;
        struct subscription s = timer(1, id, at, 1);
        OK(w_poll_oneoff(&s, &e, 1, &n));
        EQ(now(id) >= at, 1);
        s = timer(1, id, 1, 1);
        OK(w_poll_oneoff(&s, &e, 1, &n));
        EQ(n, 1);
    }
}
CASE("poll_oneoff", "only the earliest of several times") {
    struct subscription s[] = {timer(1, MONOTONIC, 60000000000, 0), timer(2, MONOTONIC, 10000000, 0), timer(3, REALTIME, -1ull, 0)};
    struct event e[3];
    u32 n;
    OK(w_poll_oneoff(s, e, 3, &n));
    EQ(n, 1);
    EQ(e[0].userdata, 2);
}
CASE("poll_oneoff", "files are ready, with what is left to read") {
    u32 fd = create(dir, "f", "abcde"), n;
    u64 at;
    OK(w_fd_seek(fd, 2, SET, &at));
    struct subscription s[] = {ready(1, EV_READ, fd), ready(2, EV_WRITE, fd), timer(3, MONOTONIC, 60000000000, 0)};
    struct event e[3];
    OK(w_poll_oneoff(s, e, 3, &n));
    EQ(n, 2);
    EQ(e[0].userdata, 1);
    EQ(e[0].type, EV_READ);
    EQ(e[0].nbytes, 3);
    EQ(e[1].userdata, 2);
    EQ(e[1].type, EV_WRITE);
}
CASE("poll_oneoff", "a closed descriptor is an event with BADF, one without the right with NOTCAPABLE") {
    touch(dir, "f", "");
    u32 none = open_at(dir, "f", 0, R_READ, 0), n;
    struct subscription s[] = {ready(1, EV_READ, 9999), ready(2, EV_READ, none), timer(3, MONOTONIC, 60000000000, 0)};
    struct event e[3];
    OK(w_poll_oneoff(s, e, 3, &n));
    EQ(n, 2);
    EQ(e[0].error, BADF);
    EQ(e[0].userdata, 1);
    EQ(e[1].error, NOTCAPABLE);
}
CASE("poll_oneoff", "INVAL for nothing and for an unknown type, NOTSUP for a processor clock, FAULT") {
    struct subscription s = timer(1, MONOTONIC, 0, 0);
    struct event e;
    u32 n;
    EQ(w_poll_oneoff(&s, &e, 0, &n), INVAL);
    EQ(w_poll_oneoff(OUTSIDE, &e, 1, &n), FAULT);
    EQ(w_poll_oneoff(&s, OUTSIDE, 1, &n), FAULT);
    EQ(w_poll_oneoff(&s, &e, 1, OUTSIDE), FAULT);
    EQ(w_poll_oneoff(&s, &e, 1u << 30, &n) != SUCCESS, 1);
    s.tag = 3;
    EQ(w_poll_oneoff(&s, &e, 1, &n), INVAL);
    s = timer(1, PROCESS_CPU, 0, 0);
    OK(w_poll_oneoff(&s, &e, 1, &n));
    EQ(e.error, NOTSUP);
}
CASE("poll_oneoff", "stdout and stderr can be written") {
    struct subscription s[] = {ready(1, EV_WRITE, 1), ready(2, EV_WRITE, 2), timer(3, MONOTONIC, 5000000000, 0)};
    struct event e[3];
    u32 n;
    OK(w_poll_oneoff(s, e, 3, &n));
    EQ(n, 2);
    EQ(e[0].userdata + e[1].userdata, 3);
    EQ(e[0].error | e[1].error, 0);
}
/* The test holds a pipe to stdin, empty, until "waiting" is said. */
ALONE("poll_oneoff", "an empty pipe isn't ready until something comes; then it says how much, then that it was closed") {
    struct subscription s[] = {ready(1, EV_READ, 0), timer(2, MONOTONIC, 20000000, 0)};
    struct event e[2];
    u32 n;
    char b[8];
    OK(w_poll_oneoff(s, e, 2, &n));
    EQ(n, 1);
    EQ(e[0].userdata, 2);
    printf("waiting\n");
    fflush(stdout);
    s[1] = timer(2, MONOTONIC, 60000000000, 0);
    OK(w_poll_oneoff(s, e, 2, &n));
    EQ(n, 1);
    EQ(e[0].userdata, 1);
    EQ(e[0].nbytes, 5);
    EQ(read_some(0, b, 8), 5);
    printf("close\n");
    fflush(stdout);
    OK(w_poll_oneoff(s, e, 2, &n));
    EQ(e[0].userdata, 1);
    EQ(e[0].flags & 1, 1);
    EQ(read_some(0, b, 8), 0);
}
