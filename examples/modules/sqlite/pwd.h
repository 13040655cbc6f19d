/* WASI has no users; the shell asks for a home folder. */
struct passwd { char *pw_dir; };
static inline struct passwd *getpwuid(unsigned uid) { return 0; }
