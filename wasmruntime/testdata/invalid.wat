;; Sound in structure, wrong in types: only validation sees it.
(module (memory (export "memory") 1) (func (export "_start") (result i32) (i64.const 1)))
