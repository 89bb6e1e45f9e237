// SPDX-License-Identifier: Apache-2.0
// An HTTP server of the JDK that starts a thread for each request: ChurnServer, prints "port N".
import com.sun.net.httpserver.HttpServer;
import java.io.IOException;
import java.net.InetAddress;
import java.net.InetSocketAddress;

class ChurnServer {
    public static void main(String[] arguments) throws IOException {
        HttpServer server = HttpServer.create(new InetSocketAddress(InetAddress.getLoopbackAddress(), 0), 0);
        server.createContext("/", exchange -> {
            byte[] page = new byte[10_000];
            exchange.sendResponseHeaders(200, page.length);
            exchange.getResponseBody().write(page);
            exchange.close();
        });
        server.setExecutor(task -> new Thread(task).start());
        server.start();
        System.out.println("port " + server.getAddress().getPort());
    }
}
