// SPDX-License-Identifier: Apache-2.0
// Threads of the Go runtime come and go: a goroutine that ends while locked to its thread ends the thread.
// verdict_threads ROUNDS: each round ends 8 threads, and allocates.
package main

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"runtime"
	"strconv"
	"sync"
)

var kept [64][]byte

func endThread(n int, wait *sync.WaitGroup) {
	runtime.LockOSThread()
	kept[n%len(kept)] = make([]byte, 100000+n)
	wait.Done()
}

func main() {
	rounds, _ := strconv.Atoi(os.Args[1])
	input := bufio.NewReader(os.Stdin)
	fmt.Println("ready")
	input.ReadString('\n')
	for round := 0; round < rounds; round++ {
		var wait sync.WaitGroup
		for n := 0; n < 8; n++ {
			wait.Add(1)
			go endThread(8*round+n, &wait)
		}
		wait.Wait()
	}
	fmt.Println("done")
	io.Copy(io.Discard, input)
}
