/* Arguments, environment, clocks, randomness and the end of the process. */
#include <stdlib.h>

#include "suite.h"

CASE("args_sizes_get", "counts what args_get writes; FAULT") {
    u32 n = 99, size = 99;
    OK(w_args_sizes_get(&n, &size));
    EQ(n, 1);
    EQ(size, sizeof "suite.wasm");
    EQ(w_args_sizes_get(OUTSIDE, &size), FAULT);
    EQ(w_args_sizes_get(&n, (void *)0xfffffffeu), FAULT);
}
/* The test gives these the arguments NUMBER, a b, an empty one and ü. */
ALONE("args_get", "pointers to each, ended by NUL, nothing after them; FAULT") {
    u32 n, size;
    char *argv[8] = {0}, buf[128];
    memset(buf, '?', sizeof buf);
    OK(w_args_sizes_get(&n, &size));
    EQ(n, 5);
    OK(w_args_get(argv, buf));
    EQ(strcmp(argv[0], "suite.wasm"), 0);
    EQ(strcmp(argv[2], "a b"), 0);
    EQ(strcmp(argv[3], ""), 0);
    EQ(strcmp(argv[4], "\xc3\xbc"), 0);
    EQ(argv[4] + 3 - buf, size);
    EQ(buf[size], '?');
    EQ(argv[5] == 0, 1);
    EQ(w_args_get(OUTSIDE, buf), FAULT);
    EQ(w_args_get(argv, OUTSIDE), FAULT);
}
CASE("environ_sizes_get", "nothing of the host's; FAULT") {
    u32 n = 99, size = 99;
    OK(w_environ_sizes_get(&n, &size));
    EQ(n, 0);
    EQ(size, 0);
    EQ(w_environ_sizes_get(OUTSIDE, &size), FAULT);
}
/* A=1, B= and C=x=y. */
ALONE("environ_get", "what was given and nothing else, in order; FAULT") {
    u32 n, size;
    char *env[8] = {0}, buf[128];
    OK(w_environ_sizes_get(&n, &size));
    EQ(n, 3);
    EQ(size, 4 + 3 + 6);
    OK(w_environ_get(env, buf));
    EQ(strcmp(env[0], "A=1") | strcmp(env[1], "B=") | strcmp(env[2], "C=x=y"), 0);
    EQ(w_environ_get(env, OUTSIDE), FAULT);
    EQ(w_environ_get((void *)0xfffffffeu, buf), FAULT);
}
CASE("clock_res_get", "a resolution below a millisecond for all four; INVAL, FAULT") {
    u64 res;
    for (u32 id = 0; id < 4; id++) {
        res = 0;
        OK(w_clock_res_get(id, &res));
        EQ(res > 0 && res < 1000000, 1);
    }
    EQ(w_clock_res_get(4, &res), INVAL);
    EQ(w_clock_res_get(-1, &res), INVAL);
    EQ(w_clock_res_get(REALTIME, OUTSIDE), FAULT);
}
CASE("clock_time_get", "the monotonic clock moves on, finer than a microsecond; the wall clock is past 2024; INVAL, FAULT") {
    u64 a = now(MONOTONIC), b, fine = 0, t;
    for (int i = 0; i < 1000; i++, a = b) {
        b = now(MONOTONIC);
        if (b < a) EQ(b, a);
        if (b % 1000) fine = 1;
    }
    EQ(fine, 1);
    EQ(now(REALTIME) > 1704067200ull * 1000000000, 1);
    EQ(w_clock_time_get(4, 1, &t), INVAL);
    EQ(w_clock_time_get(MONOTONIC, 1, OUTSIDE), FAULT);
}
CASE("clock_time_get", "processor clocks count work and not sleep") {
    struct subscription s = {.tag = EV_CLOCK, .clock = {MONOTONIC, 300000000, 0, 0}};
    struct event e;
    u32 n;
    u64 before = now(PROCESS_CPU);
    OK(w_poll_oneoff(&s, &e, 1, &n));
    u64 slept = now(PROCESS_CPU) - before;
    EQ(slept < 150000000, 1);
    before = now(THREAD_CPU);
    for (volatile int i = 0; i < 20000000; i++) {}
    EQ(now(THREAD_CPU) - before > 1000000, 1);
}
CASE("random_get", "differs each time, fills everything, a megabyte too; nothing of no length; FAULT") {
    static unsigned char a[1 << 20], b[64];
    u32 counts[256] = {0};
    OK(w_random_get(a, sizeof a));
    OK(w_random_get(b, sizeof b));
    EQ(memcmp(a, b, sizeof b) != 0, 1);
    for (u32 i = 0; i < sizeof a; i++) counts[a[i]]++;
    for (int i = 0; i < 256; i++) EQ(counts[i] > 3500 && counts[i] < 4700, 1); /* 4096 and 64 times 9 */
    OK(w_random_get(b, 0));
    EQ(w_random_get(OUTSIDE, 64), FAULT);
}
CASE("sched_yield", "comes back") { OK(w_sched_yield()); }
/* The test knows the codes. */
ALONE("proc_exit", "0") { w_proc_exit(0); }
ALONE("proc_exit", "33") { w_proc_exit(33); }
ALONE("proc_exit", "255") { w_proc_exit(255); }
ALONE("proc_exit", "at once: no exit handler runs") {
    atexit(abort);
    w_proc_exit(7);
}
CASE("proc_raise", "what is ignored by default comes back; INVAL for no signal") {
    OK(w_proc_raise(0));
    OK(w_proc_raise(16)); /* CHLD */
    OK(w_proc_raise(22)); /* URG */
    OK(w_proc_raise(27)); /* WINCH */
    EQ(w_proc_raise(31), INVAL);
    EQ(w_proc_raise(-1), INVAL);
}
ALONE("proc_raise", "ABRT ends with 134") { w_proc_raise(6); }
ALONE("proc_raise", "TERM ends with 143") { w_proc_raise(15); }
