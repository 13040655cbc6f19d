(module (memory (export "memory") 60000) (func (export "_start")))
