(module
  (memory (export "memory") 1)
  (func $deep unreachable)
  (func $main (export "_start") call $deep))
