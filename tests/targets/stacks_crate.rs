// SPDX-License-Identifier: Apache-2.0
// mmap under Rust functions and a generic trait method; sites as in stacks_chain.c: 10, 11.
use std::hint::black_box;

extern "C" {
    fn mmap(at: *mut u8, length: usize, prot: i32, flags: i32, fd: i32, offset: i64) -> *mut u8;
    fn munmap(at: *mut u8, length: usize) -> i32;
}

#[inline(never)]
fn leaf(site: usize) {
    let length = (0x1230 + site) * 4096;
    unsafe {
        let at = mmap(std::ptr::null_mut(), length, 1, 0x22, -1, 0);
        black_box(munmap(at, length));
    }
}

mod stock {
    pub trait Grow {
        fn grow(&self, site: usize);
    }
    pub struct Shelf<T>(pub T);
    impl<T> Grow for Shelf<T> {
        #[inline(never)]
        fn grow(&self, site: usize) {
            super::leaf(site);
            std::hint::black_box(site);
        }
    }
}

#[inline(never)]
fn outer(site: usize) {
    leaf(site);
    black_box(site);
}

fn main() {
    outer(10);
    use stock::Grow;
    stock::Shelf(3u8).grow(11);
    black_box(0);
}
