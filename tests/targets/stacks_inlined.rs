// SPDX-License-Identifier: Apache-2.0
// Functions inlined into one another from inside of modules, implementations and closures.
use std::collections::BTreeMap;
use std::thread;

mod stock {
    pub struct Shelf<T>(pub Vec<T>);
    pub trait Grow {
        fn grow(&mut self, count: u64) -> usize;
    }
    impl<T: From<u8> + Clone> Grow for Shelf<T> {
        #[inline(always)]
        fn grow(&mut self, count: u64) -> usize {
            (0..count).for_each(|_| self.0.push(T::from(7)));
            self.0.len()
        }
    }
}

#[inline(always)]
fn start(count: u64) -> thread::JoinHandle<usize> {
    use stock::Grow;
    thread::spawn(move || stock::Shelf::<u64>(Vec::new()).grow(count))
}

fn main() {
    let mut counts = BTreeMap::new();
    for count in 1..4 {
        counts.insert(count, start(count).join().unwrap());
    }
    assert_eq!(counts[&3], 3);
}
