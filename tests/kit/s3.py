"""An object store for tests: a subset of S3 on a local port."""

from __future__ import annotations

import urllib.parse
import uuid
from http.server import BaseHTTPRequestHandler


class S3Handler(BaseHTTPRequestHandler):
    """The part of S3's HTTP interface that pyarrow uses, over a dict: no folders, no renames."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    objects: dict[str, bytes]
    uploads: dict[str, dict[int, bytes]]

    def answer(self, status=200, body=b"", **headers):
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", headers.pop("length", None) or str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def missing(self):
        self.answer(404, b"<Error><Code>NoSuchKey</Code><Message>none</Message></Error>")

    def split(self):
        parts = urllib.parse.urlsplit(self.path)
        query = dict(urllib.parse.parse_qsl(parts.query, keep_blank_values=True))
        bucket, _, key = urllib.parse.unquote(parts.path).lstrip("/").partition("/")
        return bucket, key, query

    def body(self):
        if self.headers.get("Transfer-Encoding") == "chunked":
            data = b"".join(self.chunks())
        else:
            data = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if "aws-chunked" not in self.headers.get("Content-Encoding", ""):
            return data
        plain = b""
        while (size := int(data.partition(b"\r\n")[0].partition(b";")[0], 16)) > 0:
            start = data.index(b"\r\n") + 2
            plain, data = plain + data[start : start + size], data[start + size + 2 :]
        return plain

    def chunks(self):
        while size := int(self.rfile.readline(), 16):
            yield self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()

    def do_HEAD(self):
        _, key, _ = self.split()
        if not key or key in self.objects:
            data = self.objects.get(key, b"")
            self.answer(length=str(len(data)), ETag='"0"',
                        Last_Modified="Mon, 01 Jan 2024 00:00:00 GMT")  # fmt: skip
        else:
            self.answer(404)

    def do_GET(self):
        _, key, query = self.split()
        if "list-type" in query:
            self.list(query)
        elif key not in self.objects:
            self.missing()
        else:
            data, status = self.objects[key], 200
            if "Range" in self.headers:
                first, _, last = self.headers["Range"].removeprefix("bytes=").partition("-")
                data, status = data[int(first) : int(last or len(data)) + 1], 206
            self.answer(status, data, ETag='"0"', Last_Modified="Mon, 01 Jan 2024 00:00:00 GMT")

    def list(self, query):
        prefix, delimiter = query.get("prefix", ""), query.get("delimiter", "")
        entries = set()
        for key, data in self.objects.items():
            rest = key.removeprefix(prefix)
            if not key.startswith(prefix):
                continue
            if delimiter and delimiter in rest:
                folder = prefix + rest.partition(delimiter)[0] + delimiter
                entries.add(f"<CommonPrefixes><Prefix>{folder}</Prefix></CommonPrefixes>")
            else:
                facts = f"<Key>{key}</Key><Size>{len(data)}</Size>"
                date = "<LastModified>2024-01-01T00:00:00Z</LastModified>"
                entries.add(f"<Contents>{facts}{date}</Contents>")
        head = f"<KeyCount>{len(entries)}</KeyCount><IsTruncated>false</IsTruncated>"
        body = f"<ListBucketResult>{head}{''.join(sorted(entries))}</ListBucketResult>"
        self.answer(200, body.encode(), Content_Type="application/xml")

    def do_PUT(self):
        _, key, query = self.split()
        data = self.body()
        if key.startswith("forbidden"):
            self.answer(403, b"<Error><Code>AccessDenied</Code><Message>no</Message></Error>")
            return
        if "uploadId" in query:
            self.uploads[query["uploadId"]][int(query["partNumber"])] = data
        elif key:
            self.objects[key] = data
        self.answer(ETag='"0"')

    def do_POST(self):
        _, key, query = self.split()
        data = self.body()
        if key.startswith("forbidden"):
            self.answer(403, b"<Error><Code>AccessDenied</Code><Message>no</Message></Error>")
            return
        if "uploads" in query:
            upload = uuid.uuid4().hex
            self.uploads[upload] = {}
            kind = "InitiateMultipartUploadResult"
            body = f"<{kind}><UploadId>{upload}</UploadId></{kind}>"
        elif "uploadId" in query:
            parts = self.uploads.pop(query["uploadId"])
            self.objects[key] = b"".join(parts[number] for number in sorted(parts))
            body = "<CompleteMultipartUploadResult><ETag>0</ETag></CompleteMultipartUploadResult>"
        else:
            for part in data.decode().split("<Key>")[1:]:
                self.objects.pop(part.partition("</Key>")[0], None)
            body = "<DeleteResult></DeleteResult>"
        self.answer(200, body.encode(), Content_Type="application/xml")

    def do_DELETE(self):
        self.objects.pop(self.split()[1], None)
        self.answer(204)

    def log_message(self, *args):
        pass
