package join_test

import (
	"encoding/base64"
	"math/big"
)

func b64(b []byte) string { return base64.StdEncoding.EncodeToString(b) }
func bigOne() *big.Int    { return big.NewInt(1) }
