;; Grows its table until that fails, and ends with 0 if it failed in time.
(module
  (import "wasi_snapshot_preview1" "proc_exit" (func $exit (param i32)))
  (memory (export "memory") 1)
  (table $t 1 funcref)
  (func (export "_start") (local i32)
    (loop $more
      (br_if $more (i32.ne (table.grow $t (ref.null func) (i32.const 100000)) (i32.const -1))))
    (call $exit (i32.gt_u (table.size $t) (i32.const 1100000)))))
