//go:build !interpreter

package runner

const onlyInterpreter = false
