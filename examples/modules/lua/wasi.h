/*
 * What Lua takes for granted and wasm32-wasi hasn't: other programs, temporary
 * names, and longjmp. An error is thrown by Binaryen's Asyncify, which can
 * unwind the stack: it does so up to luaD_rawrunprotected and is never asked
 * to wind it up again.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>

static inline int lua_wasi_system(const char *command) { return command ? (errno = ENOTSUP, -1) : 0; }
static inline char *lua_wasi_tmpnam(char *name) { return 0; }
static inline FILE *lua_wasi_tmpfile(void) { return errno = ENOTSUP, (FILE *)0; }
#define system lua_wasi_system
#define tmpnam lua_wasi_tmpnam
#define tmpfile lua_wasi_tmpfile
#ifndef L_tmpnam
#define L_tmpnam 20
#endif

void lua_wasi_throw(void);
extern int lua_wasi_unwinding;
__attribute__((import_module("asyncify"), import_name("stop_unwind"))) void asyncify_stop_unwind(void);

#define luai_jmpbuf int
#define LUAI_THROW(L, c) lua_wasi_throw()
#define LUAI_TRY(L, c, a)                                        \
    {                                                            \
        a if (lua_wasi_unwinding) {                              \
            lua_wasi_unwinding = 0;                              \
            asyncify_stop_unwind();                              \
        }                                                        \
    }
