package engine

import (
	"reflect"
	"runtime"
	"slices"
	"strings"

	"github.com/twmb/franz-go/pkg/kgo"
)

// warnOfOpenCredentials says, once in the life of a process, that credentials go over the network in the open. A dialer
// of the user's own may encrypt in a way that cannot be seen from here.
func (e *Engine) warnOfOpenCredentials(cl *kgo.Client) {
	set := func(option any) bool {
		return slices.ContainsFunc(cl.OptValues(option), func(v any) bool {
			switch r := reflect.ValueOf(v); r.Kind() {
			case reflect.Slice:
				return r.Len() > 0
			case reflect.Pointer, reflect.Func:
				return !r.IsNil()
			default:
				return false
			}
		})
	}
	if e.openCredentials || !set(kgo.SASL) || set(kgo.DialTLSConfig) || ownDialer(cl) {
		return
	}
	e.openCredentials = true
	e.log.Warn("SASL without TLS: whoever sees the network sees the credentials; add kgo.DialTLSConfig to Config.Kafka")
}

// ownDialer tells whether the user gave a dialer; the client's own is one of the standard library's.
func ownDialer(cl *kgo.Client) bool {
	v := reflect.ValueOf(cl.OptValue(kgo.Dialer))
	if v.Kind() != reflect.Func || v.IsNil() {
		return false
	}
	name := runtime.FuncForPC(v.Pointer()).Name()
	return !strings.HasPrefix(name, "net.(*Dialer).") && !strings.HasPrefix(name, "github.com/twmb/franz-go/")
}
