/*
 * A case is a function with the name of what it tests and of what it shows.
 * It gets a fresh directory, opened with all rights; it goes on after a failed
 * check, and what it leaves behind is no other case's business.
 */
#ifndef SUITE_H
#define SUITE_H

#include <stdio.h>
#include <string.h>

#include "preview1.h"

void suite_add(const char *function, const char *what, int alone, void (*run)(u32 dir));
void suite_check(u64 got, u64 want, const char *text, const char *file, int line);

#define CAT_(a, b) a##b
#define CAT(a, b) CAT_(a, b)
#define CASE_(function, what, alone, id)                                                                     \
    static void CAT(run_, id)(u32 dir);                                                                      \
    __attribute__((constructor)) static void CAT(add_, id)(void) { suite_add(function, what, alone, CAT(run_, id)); } \
    static void CAT(run_, id)(__attribute__((unused)) u32 dir)
#define CASE(function, what) CASE_(function, what, 0, __COUNTER__)
/* ALONE cases have a process of their own, and surroundings that the test makes. */
#define ALONE(function, what) CASE_(function, what, 1, __COUNTER__)

#define EQ(got, want) suite_check((u64)(got), (u64)(want), #got, __FILE__, __LINE__)
#define OK(call) EQ(call, SUCCESS)

#define S(text) (text), (sizeof(text) - 1)

/* Shorthands, which check that they work. */
u32 open_at(u32 dir, const char *path, u32 oflags, u64 rights, u32 fdflags);
u32 create(u32 dir, const char *path, const char *content); /* read and write, at its start */
void touch(u32 dir, const char *path, const char *content);
struct filestat stat_at(u32 dir, const char *path);
struct fdstat fdstat(u32 fd);
u32 write_all(u32 fd, const char *text);
u32 read_some(u32 fd, char *to, u32 len); /* the errno in the upper half */
void is(u32 dir, const char *path, const char *content);
u64 now(u32 clock);

#endif
