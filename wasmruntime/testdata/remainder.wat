;; Integer remainders with their edge cases; ends with the number of wrong ones.
(module
  (import "wasi_snapshot_preview1" "proc_exit" (func $exit (param i32)))
  (memory (export "memory") 1)
  (func $s32 (param i32 i32 i32) (result i32) (i32.ne (i32.rem_s (local.get 0) (local.get 1)) (local.get 2)))
  (func $u32 (param i32 i32 i32) (result i32) (i32.ne (i32.rem_u (local.get 0) (local.get 1)) (local.get 2)))
  (func $s64 (param i64 i64 i64) (result i32) (i64.ne (i64.rem_s (local.get 0) (local.get 1)) (local.get 2)))
  (func $u64 (param i64 i64 i64) (result i32) (i64.ne (i64.rem_u (local.get 0) (local.get 1)) (local.get 2)))
  (func (export "_start")
    (call $s32 (i32.const 17) (i32.const 5) (i32.const 2))
    (call $s32 (i32.const -17) (i32.const 5) (i32.const -2))
    (call $s32 (i32.const 0x80000000) (i32.const -1) (i32.const 0))
    (call $u32 (i32.const -1) (i32.const 10) (i32.const 5))
    (call $s64 (i64.const -17) (i64.const -5) (i64.const -2))
    (call $s64 (i64.const 0x8000000000000000) (i64.const -1) (i64.const 0))
    (call $u64 (i64.const -1) (i64.const 10) (i64.const 5))
    i32.add i32.add i32.add i32.add i32.add i32.add
    call $exit))
