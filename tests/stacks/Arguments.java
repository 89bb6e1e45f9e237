// SPDX-License-Identifier: Apache-2.0
// Starts threads from a method with more arguments than registers; prints "ready" when all of it has run.
class Arguments {
    static volatile int sink;

    static void start(int n, long a, long b, Object c, Object d, long e, double f, Object g, long h, long k)
            throws Exception {
        Thread thread = new Thread(() -> sink++);
        thread.start();
        thread.join();
        sink++;
    }

    static void middle(int n, long x) throws Exception {
        start(n + 1, x, x, "", "", x, 1.0, "", x, 5L);
        sink++;
    }

    public static void main(String[] arguments) throws Exception {
        for (int i = 0; i < 1_000_000; i++) {
            middle(i, 7L);
            Thread.sleep(20);
            if (i == 20) {
                System.out.println("ready");
            }
        }
    }
}
