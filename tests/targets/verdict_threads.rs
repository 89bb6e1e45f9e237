// SPDX-License-Identifier: Apache-2.0
// Threads of Rust's standard library: verdict_threads dropped|forgotten|joined|scoped COUNT.
// A dropped JoinHandle detaches its thread; only a forgotten one leaves a thread that is never joined.
use std::io::{stdin, stdout, Read, Write};
use std::thread;

fn say(word: &str) {
    println!("{word}");
    stdout().flush().unwrap();
}

#[inline(never)]
fn refresh_prices(n: usize) -> usize {
    std::hint::black_box(n + 1)
}

#[inline(never)]
fn start(kind: &str, n: usize) {
    if kind == "scoped" {
        thread::scope(|scope| {
            scope.spawn(move || refresh_prices(n));
        });
        return;
    }
    let handle = thread::spawn(move || refresh_prices(n));
    match kind {
        "dropped" => drop(handle),
        "forgotten" => std::mem::forget(handle),
        _ => drop(handle.join()),
    }
}

fn threads() -> usize {
    std::fs::read_dir("/proc/self/task").unwrap().count()
}

fn main() {
    let arguments: Vec<String> = std::env::args().collect();
    let mut byte = [0];
    say("ready");
    stdin().read_exact(&mut byte).unwrap();
    for n in 0..arguments[2].parse().unwrap() {
        start(&arguments[1], n);
        while threads() > 1 {
            thread::yield_now();
        }
    }
    say("done");
    std::io::copy(&mut stdin(), &mut std::io::sink()).unwrap();
}
