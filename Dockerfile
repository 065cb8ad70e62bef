# One static binary and nothing else:
#   CGO_ENABLED=0 go build -o onerec ./cmd/onerec && docker build -t onerec .
FROM scratch
COPY onerec /onerec
ENTRYPOINT ["/onerec"]
