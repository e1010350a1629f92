package protimetest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
)

// Transport returns a RoundTripper that is answered by the server inside the process, whatever host it is asked for. Bodies
// are written at the pace of their reader; one that is neither read to its end nor closed keeps a goroutine until the
// request's context ends.
func (s *Server) Transport() http.RoundTripper { return transport{s} }

type transport struct{ s *Server }

// RoundTrip refuses what could not be sent to a real server either.
func (t transport) RoundTrip(r *http.Request) (*http.Response, error) {
	var sent []byte // read here, since what a RoundTripper was given is its caller's again once it returns
	if r.Body != nil {
		var err error
		sent, err = io.ReadAll(r.Body)
		r.Body.Close() //nolint:errcheck // it was only read
		if err != nil {
			return nil, fmt.Errorf("read request: %w", err)
		}
	}
	if err := r.Context().Err(); err != nil {
		return nil, err
	}
	request := r.Clone(r.Context())
	request.RequestURI = r.URL.RequestURI()
	if strings.ContainsAny(request.RequestURI, " \r\n") {
		return nil, fmt.Errorf("malformed request line: %q", request.RequestURI)
	}
	request.Body = io.NopCloser(bytes.NewReader(sent))
	if request.Host == "" {
		request.Host = r.URL.Host
	}
	in, out := io.Pipe()
	w := &pipeWriter{header: http.Header{}, pipe: out, ready: make(chan struct{})}
	done := make(chan struct{})
	// Whoever waits for the other side waits no longer than the context.
	cancel := context.AfterFunc(r.Context(), func() { out.CloseWithError(r.Context().Err()) })
	go func() {
		defer close(done)
		defer cancel()
		err := t.serve(w, request)
		w.WriteHeader(http.StatusOK)
		out.CloseWithError(err)
	}()
	select {
	case <-w.ready:
	case <-r.Context().Done():
		<-done
		return nil, r.Context().Err()
	}
	return &http.Response{
		Status: fmt.Sprintf("%d %s", w.status, http.StatusText(w.status)), StatusCode: w.status,
		Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1, Header: w.sent, Body: body{r.Context(), in}, ContentLength: -1, Request: r,
	}, nil
}

// serve lets the server answer; an answer that it breaks off is an unexpected end.
func (t transport) serve(w http.ResponseWriter, r *http.Request) (err error) {
	defer func() {
		if p := recover(); p != nil {
			if e, ok := p.(error); !ok || !errors.Is(e, http.ErrAbortHandler) {
				panic(p)
			}
			err = io.ErrUnexpectedEOF
		}
	}()
	t.s.ServeHTTP(w, r)
	return nil
}

// body is that of an answer: it ends with its request's context, as it does on a real connection.
type body struct {
	ctx context.Context
	*io.PipeReader
}

func (b body) Read(p []byte) (int, error) {
	if err := b.ctx.Err(); err != nil {
		return 0, err
	}
	return b.PipeReader.Read(p)
}

// pipeWriter is the ResponseWriter of Transport.
type pipeWriter struct {
	header, sent http.Header
	status       int
	pipe         *io.PipeWriter
	once         sync.Once
	ready        chan struct{}
}

func (w *pipeWriter) Header() http.Header { return w.header }

func (w *pipeWriter) WriteHeader(status int) {
	w.once.Do(func() {
		w.status, w.sent = status, w.header.Clone()
		close(w.ready)
	})
}

func (w *pipeWriter) Write(p []byte) (int, error) {
	w.WriteHeader(http.StatusOK)
	return w.pipe.Write(p)
}
