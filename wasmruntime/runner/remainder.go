package runner

import "runtime"

// replaceRemainders: wazero up to 1.12.0 miscompiles integer remainders on
// arm64 under register pressure.
const replaceRemainders = runtime.GOARCH == "arm64"
