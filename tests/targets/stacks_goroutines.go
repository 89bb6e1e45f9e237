// SPDX-License-Identifier: Apache-2.0
// mmap called by goroutines; sites as in stacks_chain.c:
//
//	30 from main   31 from a goroutine
//
// The runtime's own calls, which grow the heap, come from a thread's own stack.
package main

import "syscall"

var (
	sink int
	kept [][]byte
)

//go:noinline
func leaf(site int) {
	memory, err := syscall.Mmap(-1, 0, (0x1230+site)*4096, syscall.PROT_READ, syscall.MAP_PRIVATE|syscall.MAP_ANON)
	if err != nil {
		panic(err)
	}
	syscall.Munmap(memory)
	sink++
}

//go:noinline
func outer(site int) {
	leaf(site)
	sink++
}

func worker(done chan bool) {
	outer(31)
	done <- true
}

func main() {
	outer(30)
	done := make(chan bool)
	go worker(done)
	<-done
	for i := 0; i < 20; i++ {
		kept = append(kept, make([]byte, 8<<20))
	}
}
