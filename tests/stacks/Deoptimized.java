// SPDX-License-Identifier: Apache-2.0
// Starts threads below a compiled method that may not go on, since a class was loaded that it did not expect;
// prints "ready" when it has been so for a while.
class Deoptimized {
    static volatile int sink;

    static class Plain {
        int amount() {
            return 1;
        }
    }

    static class Unexpected extends Plain {
        @Override
        int amount() {
            return 2;
        }
    }

    static void starting() throws Exception {
        for (int i = 0; i < 1_000_000; i++) {
            Thread thread = new Thread(() -> sink++);
            thread.start();
            thread.join();
            Thread.sleep(20);
            if (i == 20) {
                System.out.println("ready");
            }
        }
    }

    static void below(Plain plain, boolean isLast) throws Exception {
        if (isLast) {
            new Unexpected();
            starting();
        }
        sink += plain.amount();
    }

    static void expecting(Plain plain, boolean isLast) throws Exception {
        below(plain, isLast);
        sink += plain.amount();
    }

    public static void main(String[] arguments) throws Exception {
        Plain plain = new Plain();
        for (int i = 0; i < 100_000; i++) {
            expecting(plain, false);
        }
        expecting(plain, true);
    }
}
