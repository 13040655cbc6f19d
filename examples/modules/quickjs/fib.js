let count = 0
export const fib = n => (count++, n < 2 ? n : fib(n - 1) + fib(n - 2))
export const calls = () => count
export default class {}
