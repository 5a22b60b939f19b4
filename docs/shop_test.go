package docs_test

import (
	"testing"
	"time"

	"tailrace.dev/processor"
	"tailrace.dev/serde"
	"tailrace.dev/state"
	"tailrace.dev/stream"
	"tailrace.dev/table"
)

// The shop that the snippets of concepts.md are about.
type (
	Order    struct{ ID, Product string }
	Payment  struct{ Order string }
	Customer struct{ Name, Town string }
	Town     struct{ Country string }
	Bill     struct {
		Order Order
		Paid  bool
	}
	Letter    struct{ Name, Order string }
	Page      struct{ Assets []string }
	Asset     struct{ Text string }
	WholePage struct {
		Page   Page
		Assets []processor.Opt[Asset]
	}
)

var (
	Orders    = processor.NewTopic("orders", serde.String, serde.JSON[Order]())       // by customer
	Payments  = processor.NewTopic("payments", serde.String, serde.JSON[Payment]())   // by customer
	Clicks    = processor.NewTopic("clicks", serde.String, serde.String)              // by customer
	Customers = processor.NewTopic("customers", serde.String, serde.JSON[Customer]()) // by customer
	Limits    = processor.NewTopic("limits", serde.String, serde.Int64)               // by customer
	Towns     = processor.NewTopic("towns", serde.String, serde.JSON[Town]())         // by town
	Products  = processor.NewTopic("products", serde.String, serde.String)            // by product
	Pages     = processor.NewTopic("pages", serde.String, serde.JSON[Page]())         // by page
	Assets    = processor.NewTopic("assets", serde.String, serde.JSON[Asset]())       // by asset

	OrdersPaid   = state.Join("orders-paid", serde.String, serde.JSON[Order](), serde.JSON[Payment](), 3*time.Hour)
	CustomerRows = state.KeyValue("customer-rows", serde.String, serde.JSON[Customer]())
	ProductRows  = state.KeyValue("product-rows", serde.String, serde.String)
	TownRows     = state.KeyValue("town-rows", serde.String, serde.JSON[Town]())
	LimitHistory = state.Versioned("limit-history", serde.String, serde.Int64, time.Hour)
	OrdersHeld   = state.Buffer("orders-held", serde.String, serde.JSON[Order]())
	HomeTown     = table.NewLink("home-town", serde.String, serde.String, serde.JSON[Town]())
	PageRows     = state.KeyValue("page-rows", serde.String, serde.JSON[Page]())
	AssetRows    = state.KeyValue("asset-rows", serde.String, serde.JSON[Asset]())
	PageAssets   = table.NewLink("page-assets", serde.String, serde.String, serde.JSON[Asset]())
	Hourly       = state.Window("clicks-hourly", serde.String, serde.Int64, 24*time.Hour)
	Visits       = state.Session("visits", serde.String, serde.Int64, 24*time.Hour)
	HourlyLast   = state.Buffer("clicks-hourly-last", state.WindowedSerde(serde.String), serde.Int64)
	MovesHeld    = state.Buffer("moves-held", serde.String, serde.JSON[Customer]())
)

func TestShopBuilds(t *testing.T) {
	for name, declare := range map[string]func(b *processor.Builder){
		"streams": func(b *processor.Builder) {
			orders, payments := stream.From(b, Orders), stream.From(b, Payments)
			within := stream.Within(time.Hour).Grace(10 * time.Minute)
			bills := stream.LeftJoinWindow(orders, payments, within, OrdersPaid,
				func(_ string, o Order, p processor.Opt[Payment]) Bill { return Bill{o, p.OK} })
			use(bills)
		},
		"stream and table": func(b *processor.Builder) {
			orders := stream.From(b, Orders)
			customers := table.From(b, Customers, CustomerRows)
			letters := stream.Join(orders, customers,
				func(_ string, o Order, c Customer) Letter { return Letter{c.Name, o.ID} })
			use(letters)
		},
		"grace": func(b *processor.Builder) {
			orders := stream.From(b, Orders)
			limits := table.FromVersioned(b, Limits, LimitHistory)
			checked := stream.JoinGrace(orders, limits, time.Minute, OrdersHeld,
				func(_ string, o Order, limit int64) bool { return limit > 0 })
			use(checked)
		},
		"foreign key": func(b *processor.Builder) {
			customers := table.From(b, Customers, CustomerRows)
			towns := table.From(b, Towns, TownRows)
			countries := table.ForeignKeyJoin(customers, towns, HomeTown,
				func(_ string, c Customer) (string, bool) { return c.Town, c.Town != "" },
				func(_ string, c Customer, t Town) string { return t.Country })
			use(stream.Changes(countries))
		},
		"many": func(b *processor.Builder) {
			pages := table.From(b, Pages, PageRows)
			assets := table.From(b, Assets, AssetRows)
			whole := table.JoinMany(pages, assets, PageAssets,
				func(_ string, p Page) []string { return p.Assets },
				func(_ string, p Page, assets []processor.Opt[Asset]) WholePage { return WholePage{p, assets} })
			use(stream.Changes(whole))
		},
		"global": func(b *processor.Builder) {
			orders := stream.From(b, Orders)
			products := table.Global(b, Products, ProductRows)
			titles := stream.JoinGlobal(orders, products,
				func(_ string, o Order) (string, bool) { return o.Product, o.Product != "" },
				func(_ string, o Order, title string) string { return title })
			use(titles)
		},
		"windows": func(b *processor.Builder) {
			clicks := stream.Group(stream.From(b, Clicks))
			perHour := stream.WindowBy(clicks, stream.Tumbling(time.Hour).Grace(time.Minute))
			counts := stream.Count(perHour, Hourly)
			use(stream.Changes(counts))
			final := table.SuppressUntilClose(counts, HourlyLast, table.Limits{})
			use(stream.Changes(final))
		},
		"sessions": func(b *processor.Builder) {
			clicks := stream.Group(stream.From(b, Clicks))
			visits := stream.Count(stream.SessionBy(clicks, stream.Sessions(30*time.Minute)), Visits)
			use(stream.Changes(visits))
		},
		"suppress": func(b *processor.Builder) {
			customers := table.From(b, Customers, CustomerRows)
			calm := table.Suppress(customers, MovesHeld, time.Minute, table.Limits{MaxRecords: 10_000})
			use(stream.Changes(calm))
		},
	} {
		if _, err := processor.Build(declare); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func use[K, V any](s *stream.Stream[K, V]) { stream.ForEach(s, func(K, V) {}) }
