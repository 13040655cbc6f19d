/* The process that holds a pod's namespaces: it does nothing but wait, and as
 * process 1 of a pod that shares its PID namespace it reaps the dead. No libc:
 * some hundred bytes of code, one page of stack. Built by build.sh. */

#define SIGINT 2
#define SIGTERM 15
#define SIGCHLD 17
#define WNOHANG 1

#if defined(__x86_64__)
#define SYS_rt_sigprocmask 14
#define SYS_rt_sigtimedwait 128
#define SYS_wait4 61
#define SYS_exit 60
static long sys4(long n, long a, long b, long c, long d)
{
	long ret;
	register long r10 __asm__("r10") = d;
	__asm__ volatile("syscall" : "=a"(ret) : "a"(n), "D"(a), "S"(b), "d"(c), "r"(r10) : "rcx", "r11", "memory");
	return ret;
}
#elif defined(__aarch64__)
#define SYS_rt_sigprocmask 135
#define SYS_rt_sigtimedwait 137
#define SYS_wait4 260
#define SYS_exit 93
static long sys4(long n, long a, long b, long c, long d)
{
	register long x8 __asm__("x8") = n;
	register long x0 __asm__("x0") = a;
	register long x1 __asm__("x1") = b;
	register long x2 __asm__("x2") = c;
	register long x3 __asm__("x3") = d;
	__asm__ volatile("svc 0" : "+r"(x0) : "r"(x8), "r"(x1), "r"(x2), "r"(x3) : "memory");
	return x0;
}
#elif defined(__arm__)
#define SYS_rt_sigprocmask 175
#define SYS_rt_sigtimedwait 177
#define SYS_wait4 114
#define SYS_exit 1
static long sys4(long n, long a, long b, long c, long d)
{
	register long r7 __asm__("r7") = n;
	register long r0 __asm__("r0") = a;
	register long r1 __asm__("r1") = b;
	register long r2 __asm__("r2") = c;
	register long r3 __asm__("r3") = d;
	__asm__ volatile("svc 0" : "+r"(r0) : "r"(r7), "r"(r1), "r"(r2), "r"(r3) : "memory");
	return r0;
}
#elif defined(__riscv)
#define SYS_rt_sigprocmask 135
#define SYS_rt_sigtimedwait 137
#define SYS_wait4 260
#define SYS_exit 93
static long sys4(long n, long a, long b, long c, long d)
{
	register long a7 __asm__("a7") = n;
	register long a0 __asm__("a0") = a;
	register long a1 __asm__("a1") = b;
	register long a2 __asm__("a2") = c;
	register long a3 __asm__("a3") = d;
	__asm__ volatile("ecall" : "+r"(a0) : "r"(a7), "r"(a1), "r"(a2), "r"(a3) : "memory");
	return a0;
}
#else
#error "no system calls for this architecture"
#endif

void _start(void)
{
	/* Blocked signals reach process 1 of a namespace too, by sigtimedwait. */
	unsigned long long set = 1ULL << (SIGINT - 1) | 1ULL << (SIGTERM - 1) | 1ULL << (SIGCHLD - 1);

	sys4(SYS_rt_sigprocmask, 0, (long)&set, 0, 8);
	for (;;) {
		long sig = sys4(SYS_rt_sigtimedwait, (long)&set, 0, 0, 8);

		if (sig == SIGCHLD)
			while (sys4(SYS_wait4, -1, 0, WNOHANG, 0) > 0)
				;
		if (sig == SIGINT || sig == SIGTERM)
			sys4(SYS_exit, 0, 0, 0, 0);
	}
}
