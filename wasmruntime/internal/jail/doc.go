// Package jail makes the walls around a guest's process: rlimits, user and
// capabilities, no_new_privs, chroot, landlock, and a seccomp filter. Each
// wall that the kernel or the permissions don't allow is left out and named,
// but for what was asked for by name (a user, as root).
//
// Everything but Seccomp works on the calling thread only, which therefore
// must be locked and must exec afterwards. The runner is the only importer.
package jail
