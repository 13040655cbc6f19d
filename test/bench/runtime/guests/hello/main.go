// Command hello says hello; with an argument it stays. The bench builds it for WASI.
package main

import (
	"fmt"
	"os"
	"time"
)

func main() {
	fmt.Println("hello")
	for len(os.Args) > 1 {
		time.Sleep(time.Hour)
	}
}
