// SPDX-License-Identifier: Apache-2.0
// Work for node's pool of threads, and an HTTP server: prints "port N".
const crypto = require("crypto");
const http = require("http");
const zlib = require("zlib");

const server = http.createServer((request, response) => {
    crypto.pbkdf2("word", "salt", 100, 64, "sha512", () => {
        zlib.deflate(Buffer.alloc(100000), (error, packed) => response.end(packed));
    });
});
server.listen(0, "127.0.0.1", () => console.log("port " + server.address().port));
