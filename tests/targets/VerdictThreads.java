// SPDX-License-Identifier: Apache-2.0
// Threads of the JVM come and go: VerdictThreads ROUNDS; each round starts 8 threads, allocates, and joins them.
import java.io.IOException;

class VerdictThreads {
    static volatile byte[] kept;

    static void refreshPrices() {
        for (int i = 0; i < 20; i++)
            kept = new byte[50_000];
    }

    public static void main(String[] arguments) throws IOException, InterruptedException {
        System.out.println("ready");
        while (System.in.read() != '\n')
            ;
        for (int round = 0; round < Integer.parseInt(arguments[0]); round++) {
            Thread[] threads = new Thread[8];
            for (int i = 0; i < threads.length; i++) {
                threads[i] = new Thread(VerdictThreads::refreshPrices);
                threads[i].start();
            }
            for (Thread thread : threads)
                thread.join();
        }
        System.out.println("done");
        while (System.in.read() >= 0)
            ;
    }
}
