"""Requests that no well-behaved HTTP client sends."""

from __future__ import annotations

HOSTILE = [
    b"GET http://[::1/ HTTP/1.1\r\n\r\n",
    b"GET http://[::1/metrics HTTP/1.0\r\n\r\n",
    b"GET //[ HTTP/1.1\r\n\r\n",
    b"GET http://]:x/ HTTP/1.1\r\n\r\n",
    b"GET http://[v1.%zz]/ HTTP/1.1\r\n\r\n",
    b"GET http://\xc2\xa0\xe2\x84\x80/ HTTP/1.1\r\n\r\n",
    b"GET http://x:99999999999/ HTTP/1.1\r\n\r\n",
    b"GET http:///// HTTP/1.1\r\n\r\n",
    b"GET [::1 HTTP/1.1\r\n\r\n",
    b"GET * HTTP/1.1\r\n\r\n",
    b"CONNECT x:443 HTTP/1.1\r\n\r\n",
    b"OPTIONS * HTTP/1.1\r\n\r\n",
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    b"GET /metrics\r\n\r\n",
    b"GET  HTTP/1.1\r\n\r\n",
    b"GET /metrics HTTP/1.1 x\r\n\r\n",
    b"GET /metrics HTTP/1.\r\n\r\n",
    b"GET /metrics HTTP/\r\n\r\n",
    b"GET /metrics http/1.1\r\n\r\n",
    b"G\x00T /metrics HTTP/1.1\r\n\r\n",
    b"GET /\x00 HTTP/1.1\r\n\r\n",
    b"GET /\xff\xfe HTTP/1.1\r\n\r\n",
    b"GET /%00%ff%zz% HTTP/1.1\r\n\r\n",
    b"GET /../../etc/passwd HTTP/1.1\r\n\r\n",
    b"GET /metrics?collect[]=\x1b[2J HTTP/1.1\r\n\r\n",
    b"GET /metrics?collect[]=%0d%0aSet-Cookie:%20a=b HTTP/1.1\r\n\r\n",
    b"GET /metrics?collect[]=%f0%28%8c%28%ed%a0%80 HTTP/1.1\r\n\r\n",
    b"GET /metrics?" + b"&".join([b"a=1"] * 100) + b" HTTP/1.1\r\n\r\n",
    b"GET /metrics?collect[]=" + b"a" * 30_000 + b" HTTP/1.1\r\n\r\n",
    b"GET /metrics?collect%5B%5D=rapl&collect[]= HTTP/1.1\r\n\r\n",
    b"GET /metrics HTTP/1.1\r\n: x\r\n\r\n",
    b"GET /metrics HTTP/1.1\r\nA\r\n\r\n",
    b"GET /metrics HTTP/1.1\r\n A: x\r\n\r\n",
    b"GET /metrics HTTP/1.1\r\n\x00: x\r\n\r\n",
    b"GET /metrics HTTP/1.1\r\nA: \xff\x00\r\n\r\n",
    b"GET /metrics HTTP/1.1\r\n" + b"A: b\r\n" * 200 + b"\r\n",
    b"GET /metrics HTTP/1.1\nA: b\n\n",
    b"GET /metrics HTTP/1.1\r\rA: b\r\r\r\n\r\n",
    *(
        b"GET /metrics HTTP/1.1\r\nX-Prometheus-Scrape-Timeout-Seconds: " + value + b"\r\n\r\n"
        for value in (b"1e-9", b"nan", b"-inf", b"1e999", b"", b"0x10", b"\xb2", b"1_0")
    ),
    *(
        b"GET /metrics HTTP/1.1\r\nAccept: " + value + b"\r\n\r\n"
        for value in (b";", b",,,", b"a/b;q=x", b"application/openmetrics-text;version=nan", b"*/*;q=" + b"9" * 5000)
    ),
    *(
        b"GET /metrics HTTP/1.1\r\nAccept-Encoding: " + value + b"\r\n\r\n"
        for value in (b";q=", b"gzip;q=nan", b"\x00", b"gzip" * 1000)
    ),
    b"POST /metrics HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nffffffffffffffff\r\n",
    b"GET /metrics HTTP/1.1\r\nContent-Length: -1\r\n\r\n",
    b"GET /metrics HTTP/1.1\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nGET / ",
    b"GET /metrics HTTP/1.1\r\nAuthorization: Basic \xff\r\n\r\n",
    b"GET /metrics HTTP/1.1\r\nExpect: 100-continue\r\n\r\n",
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n",
    b"\r\n" * 100,
    b"",
    b"\x00" * 1000,
]
