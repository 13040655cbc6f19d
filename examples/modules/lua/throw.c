/* In a file of its own: Asyncify leaves functions alone that begin or end an unwinding. */
int lua_wasi_unwinding;

__attribute__((import_module("asyncify"), import_name("start_unwind"))) void asyncify_start_unwind(void *buffer);

/* Frames are saved here and never looked at; 200 levels of C are Lua's limit. */
static char frames[1 << 20];

void lua_wasi_throw(void) {
    static struct { char *at, *end; } buffer;
    buffer.at = frames;
    buffer.end = frames + sizeof frames;
    lua_wasi_unwinding = 1;
    asyncify_start_unwind(&buffer);
}
