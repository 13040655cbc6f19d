import * as std from "std"
import * as os from "os"
import { fib, calls } from "./fib.js"

class Account {
  #balance = 0
  static made = 0
  constructor(owner) { this.owner = owner; Account.made++ }
  get balance() { return this.#balance }
  deposit(n) { if (n <= 0) throw new RangeError(`${n} is no deposit`); this.#balance += n; return this }
  *[Symbol.iterator]() { yield this.owner; yield this.#balance }
}
class Savings extends Account {
  deposit(n) { return super.deposit(n * 2) }
  toString() { return `${this.constructor.name}(${[...this]})` }
}
const s = new Savings("Ada").deposit(21)
console.log(String(s), s instanceof Account, Account.made, "balance" in s)
try { s.deposit(-1) } catch (e) { console.log(e.name, e.message, /deposit \(\/data\/features.js:10/.test(e.stack)) }

const counters = []
for (let i = 0; i < 3; i++) counters.push(() => i++ * 10)
console.log(counters.map(c => c()).join(), counters.map(c => c()).join())

function* naturals(n = 0) { try { while (true) n = (yield n) ?? n + 1 } finally { console.log("closed") } }
const g = naturals()
console.log(g.next().value, g.next().value, g.next(40).value, JSON.stringify(g.return("r")))

console.log("2026-11-26 and 1999-01-02".replace(/(?<y>\d{4})-(?<m>\d\d)-(?<d>\d\d)/g, "$<d>.$<m>.$<y>"))
console.log("naïve ✓ 𝒳".match(/\p{L}+|\p{Math}/gu).join("|"), /(?<=\$)\d+/.exec("cost: $42")[0], "aBc".split(/(?=[A-Z])/))
console.log(JSON.stringify(JSON.parse('{"a":[1,2.5e3,{"b":null}],"c":"\\u00e9\\n"}', (k, v) => k === "b" ? "revived" : v)))
try { JSON.parse('{"a":') } catch (e) { console.log(e instanceof SyntaxError) }

let f = 1n
for (let i = 1n; i <= 50n; i++) f *= i
console.log(f, f % 10007n, BigInt.asIntN(64, -(2n ** 63n) - 1n), (-7n / 2n).toString(16))
console.log(0.1 + 0.2, (1e21).toString(), 5e-324, (255).toString(36), Math.hypot(3, 4), -7 % 3, (1234.5678).toFixed(2))

const view = new DataView(new ArrayBuffer(16))
view.setFloat64(0, Math.PI); view.setInt16(8, -2, true); view.setBigUint64(8, 0xdeadbeefn)
console.log([...new Uint8Array(view.buffer)].map(b => b.toString(16).padStart(2, "0")).join(""))
console.log(Float32Array.of(1.1)[0], Uint8ClampedArray.from([-5, 300, 1.5]).join(), new Int32Array([3, 1, 2]).sort().join())

let depth = 0
const dive = () => { depth++; dive() }
for (let i = 0; i < 3; i++) {
  depth = 0
  try { dive() } catch (e) { console.log(e.name, e.message, depth > 1000) }
}
const deep = "[".repeat(1e5)
try { JSON.parse(deep) } catch (e) { console.log(e.message) }

const d = new Date(Date.UTC(2024, 1, 29, 12, 30, 15, 250))
console.log(d.toISOString(), d.getTimezoneOffset(), Date.parse("2024-02-29T12:30:15.250Z") === d.getTime(), new Date(NaN).getTime())
console.log(Math.abs(Date.now() / 1000 - os.stat("/data/features.js")[0].mtime / 1000) < 3600)

const cache = new Map([["k", new Set([1, 2, 2])]]), { k: [first, ...rest] } = Object.fromEntries(cache)
const traced = new Proxy({}, { get: (_, name) => `<${String(name)}>` })
console.log(first, rest, traced.anything, [3, 1, 2].toSorted().at(-1), Object.groupBy([1, 2, 3], n => n % 2 ? "odd" : "even").odd)
console.log(fib(20), calls(), typeof (await import("./fib.js")).default, Reflect.ownKeys(class { static x }).length)

// Garbage in cycles, more of it than the memory that stays.
for (let i = 0; i < 200000; i++) { const a = { data: new Array(10) }; a.self = a }
const sorted = Array.from({ length: 20000 }, (_, i) => (i * 7919) % 20011).sort((a, b) => a - b)
console.log(sorted.every((n, i) => !i || sorted[i - 1] < n), Atomics.add(new Int32Array(new SharedArrayBuffer(4)), 0, 5))

const file = std.open("/data/out.txt", "w")
file.printf("%05d %s\n", 42, "from JavaScript")
file.close()
console.log(std.loadFile("/data/out.txt").trim(), os.readdir("/data")[0].sort().slice(2).join(), std.loadFile("/nothing"))
console.log(os.open("/data/no/such", os.O_RDONLY) < 0, std.getenv("K"), scriptArgs.slice(1).join(), std.in.getline())
try { os.exec(["true"]) } catch (e) { console.log(e.name, e.message) }

const order = []
const tick = (name, ms) => new Promise(done => os.setTimeout(() => { order.push(name); done(name) }, ms))
Promise.resolve().then(() => order.push("job"))
order.push("first")
const start = Date.now()
const fail = name => { throw new Error(name) }
const all = await Promise.allSettled([tick("slow", 60), tick("fast", 5), tick("bad", 30).then(fail)])
console.log(order.join(), all.map(r => r.value ?? r.reason.message).join(), Date.now() - start >= 59)
async function* pages() { for (const p of [1, 2, 3]) { await null; yield p } }
let sum = 0
for await (const p of pages()) sum += p
console.log(sum, await Promise.any([tick("one", 1).then(fail), tick("two", 10)]))
std.err.puts("done\n")
std.exit(7)
