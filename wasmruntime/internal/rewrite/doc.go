// Package rewrite changes the bytes of an admitted module before it is
// compiled, where the engine can't be told otherwise:
//
//   - CapTables gives every table a maximum, because table.grow knows no
//     memory limit.
//   - ReplaceRemainders makes integer remainders out of div, mul and sub,
//     because wazero up to 1.12.0 miscompiles them on arm64 under register
//     pressure.
//   - Stub replaces every function body by `unreachable`: with native code in
//     the cache the bodies are never looked at again, but decoding and
//     validating them would be most of a large module's start.
//   - MergeData makes fewer data segments: the engine keeps a hundred bytes and
//     more for each, and a small Go program has twenty thousand.
//
// All of them expect a module that modcheck.Check admitted. The compiler
// child calls them, after its own Check.
package rewrite
